"""Which extracts on offer are due: a pure function."""

import pytest

from kbo_pipeline.core.extracts import ExtractKey, plan_imports


def keys(text: str) -> list[ExtractKey]:
    """`140f 141u` as keys."""
    kinds = {"f": "full", "u": "update"}
    return [ExtractKey.parse(f"{int(word[:-1]):04d}-{kinds[word[-1]]}") for word in text.split()]


@pytest.mark.parametrize(
    ("published", "offered", "due"),
    [
        ("", "", ""),
        ("", "141u 142u", ""),
        ("", "139f 140f 140u 141u 142u", "140f 141u 142u"),
        ("", "140u 142u 141u 140f", "140f 141u 142u"),
        ("140f", "139u 140u 140f", ""),
        ("140f", "142u 141u", "141u 142u"),
        ("140f", "141f 141u 142f 142u", "141u 142u"),
        ("140f", "141u 142u 144u 144f", "141u 142u 144f"),
        ("140f", "143f 144u 145f 146u", "145f 146u"),
        ("140f", "142u 143u", ""),
        ("140f", "141u 143u", "141u"),
        ("140f", "141f", "141f"),
        ("145u", "140f 141u", ""),
    ],
)
def test_the_plan_goes_by_updates_and_bridges_gaps_by_the_newest_full(
    published: str, offered: str, due: str
) -> None:
    newest = keys(published)[0] if published else None
    assert list(plan_imports(keys(offered), newest).due) == keys(due)


@pytest.mark.parametrize(
    ("published", "offered", "gap", "reason"),
    [
        ("140f", "141u", None, "follows 0140-full"),
        ("140f", "140f", None, "0140-full is the newest: nothing to do"),
        ("", "141u", "a Full", "the register is empty and no Full is at hand"),
        (
            "140f",
            "143u",
            "0141-update",
            "0141-update is not on offer, and there is no Full above it",
        ),
        ("142u", "144f", None, "0143-update is not on offer: 0144-full takes its place"),
        ("", "144f", None, "the register is empty: 0144-full takes its place"),
    ],
)
def test_the_plan_says_why(published: str, offered: str, gap: str | None, reason: str) -> None:
    plan = plan_imports(keys(offered), keys(published)[0] if published else None)
    assert (plan.gap, plan.reason) == (gap, reason)


@pytest.mark.parametrize(
    ("offered", "unusable", "due", "gap", "reason"),
    [
        ("141u 142u 143f", "141u", "143f", None, "0141-update failed too often: 0143-full takes"),
        (
            "141u 142f 143f",
            "143f",
            "141u 142f",
            "0143-update",
            "0142-update is not on offer: 0142-full",
        ),
        (
            "141u 142u",
            "141u",
            "",
            "0141-update",
            "0141-update failed too often, and there is no Full above",
        ),
        ("141u 142u", "143u", "141u 142u", None, "follows 0140-full"),
    ],
)
def test_what_failed_too_often_counts_as_not_there(
    offered: str, unusable: str, due: str, gap: str | None, reason: str
) -> None:
    plan = plan_imports(keys(offered), keys("140f")[0], keys(unusable))
    assert (list(plan.due), plan.gap) == (keys(due), gap)
    assert plan.reason.startswith(reason)


@pytest.mark.parametrize(
    ("published", "offered", "rolled_back", "due", "reason"),
    [
        ("140f", "141u", "141u", "", "0141-update was rolled back; kbo retry 0141-update imports"),
        ("140f", "", "141u", "", "0141-update was rolled back; kbo retry 0141-update imports"),
        ("140f", "141u 142u", "141u", "", "0141-update was rolled back; kbo retry 0141-update"),
        ("140f", "141u 141f 142u", "141u", "", "0141-update was rolled back; kbo retry"),
        ("140f", "141u 142f 143u", "141u", "142f 143u", "0141-update was rolled back: 0142-full"),
        ("140f", "145f", "145f", "", "0145-full was rolled back; kbo retry 0145-full imports"),
        ("140f", "141u 142u 145f", "145f", "141u 142u", "0145-full was rolled back; kbo retry"),
        ("", "140f 141u", "140f", "", "0140-full was rolled back; kbo retry 0140-full imports"),
        ("", "139f 140f 141u", "140f 141u", "", "0140-full was rolled back; kbo retry 0140-full"),
        ("", "140f 145f", "140f", "145f", "the register is empty: 0145-full takes its place"),
        ("145f", "140f 141u 145f", "141u", "", "0145-full is the newest: nothing to do"),
    ],
)
def test_what_was_rolled_back_waits_for_a_person_or_a_higher_full(
    published: str, offered: str, rolled_back: str, due: str, reason: str
) -> None:
    newest = keys(published)[0] if published else None
    plan = plan_imports(keys(offered), newest, rolled_back=keys(rolled_back))
    assert (list(plan.due), plan.gap) == (keys(due), None)
    assert plan.reason.startswith(reason)
