"""Which extract is next: pure functions, no I/O."""

from collections.abc import Collection

from kbo_pipeline.errors import OrderError
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.register import check_order


def next_to_apply(
    staged: Collection[ExtractKey], published: ExtractKey | None
) -> ExtractKey | None:
    """The staged extract that follows what is published; None when none does.

    The lowest number comes first; of one number the Update, because it costs less than the Full.

    Args:
        staged: extracts that are staged and not published.
        published: the newest published extract.
    """
    for key in sorted(staged, key=lambda key: (key.number, key.type == "full")):
        try:
            check_order(key, published)
        except OrderError:
            continue
        return key
    return None
