"""Which extract is next: the one that follows, the cheapest of them, or none."""

import itertools

import pytest

from kbo_pipeline.core.extracts import ExtractKey, next_to_apply


@pytest.mark.parametrize(
    ("staged", "published", "expected"),
    [
        ("", None, None),
        ("", "0140-full", None),
        ("0140-full", None, "0140-full"),
        ("0140-update", None, None),
        ("0140-update 0141-update 0142-full", None, "0142-full"),
        ("0140-full 0141-full", None, "0140-full"),
        ("0140-full 0140-update", None, "0140-full"),
        ("0141-update", "0140-full", "0141-update"),
        ("0141-update 0142-update 0143-update", "0140-update", "0141-update"),
        ("0141-update 0141-full", "0140-full", "0141-update"),
        ("0142-update 0143-update", "0140-full", None),
        ("0142-update 0143-full 0144-full", "0140-full", "0143-full"),
        ("0141-update 0145-full", "0140-full", "0141-update"),
        ("0139-full 0140-update", "0140-full", None),
        ("0139-full 0140-full 0141-update", "0140-update", "0141-update"),
        ("9999-full 10000-update", "9999-update", "10000-update"),
        ("10000-full 9999-full", "9000-full", "9999-full"),
    ],
)
def test_the_next_extract_follows_what_is_published_whatever_the_order_of_staging(
    staged: str, published: str | None, expected: str | None
) -> None:
    keys = [ExtractKey.parse(text) for text in staged.split()]
    newest = ExtractKey.parse(published) if published else None
    for order in itertools.permutations(keys):
        found = next_to_apply(order, newest)
        assert (str(found) if found else None) == expected


def test_extracts_are_applied_one_after_the_other_until_none_follows() -> None:
    staged = {
        ExtractKey.parse(text)
        for text in (
            *("0138-update", "0140-full", "0141-update", "0141-full", "0142-update"),
            *("0144-update", "0150-full", "0151-update", "0153-update"),
        )
    }
    published, applied = None, []
    while (key := next_to_apply(staged, published)) is not None:
        applied.append(str(key))
        published = key
    assert applied == ["0140-full", "0141-update", "0142-update", "0150-full", "0151-update"]
