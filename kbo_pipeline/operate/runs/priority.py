"""How runs stand in Dagster's queue: by extract number, whatever came first."""

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.operate.runs.progress import EXTRACT_TAG

_AHEAD = 2_000_000_000  # more than twice what an extract number has digits for


def queue_tags(key: ExtractKey, *, is_staged: bool) -> dict[str, str]:
    """Tags of a run about an extract.

    The first in order comes first; and what is staged before what is still to be staged, or else
    five runs that stage would hold up the register.

    Args:
        key: the extract.
        is_staged: the run applies or publishes.
    """
    priority = (_AHEAD if is_staged else 0) - 2 * key.number - (key.type == "full")
    return {EXTRACT_TAG: str(key), "dagster/priority": str(priority)}


def last_in_queue(key: ExtractKey) -> dict[str, str]:
    """Tags of a run that reads what is published: any import comes first."""
    return {EXTRACT_TAG: str(key), "dagster/priority": str(-_AHEAD)}
