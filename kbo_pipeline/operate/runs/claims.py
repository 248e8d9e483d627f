"""Claims: one process at a time works on an extract. And how runs about it queue."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dagster as dg

from kbo_pipeline.core.errors import ExtractError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.runs.partitions import kbo_extracts, remove_partition
from kbo_pipeline.operate.runs.progress import EXTRACT_TAG

OWN_RUN = {"kbo/started_by": "kbo"}
"""Tag of the runs that a `kbo` process runs itself."""

BUSY_TAG = "kbo/busy"
"""Tag of a run that failed because another process worked on its extract: the run's own id."""

StepContext = dg.AssetExecutionContext | dg.OpExecutionContext

WRITER_POOL = "register"
"""The pool of all steps that write the register: one at a time."""

WRITER_WAIT = 900.0
"""Seconds to wait for the register: its holder may be a process that was held up."""

_AHEAD = 2_000_000_000  # more than twice what an extract number has digits for
_PATIENCE = 10.0  # seconds; its holder may only be looking whether it is free


def is_own(run: dg.DagsterRun) -> bool:
    """Whether a `kbo` process runs this run itself."""
    return OWN_RUN.keys() <= run.tags.keys()


def claim_file(settings: Settings, key: ExtractKey) -> Path:
    """The lock of the process that works on an extract."""
    return settings.work_dir / "claims" / f"{key}.lock"


@contextmanager
def claim(settings: Settings, key: ExtractKey, patience: float = _PATIENCE) -> Iterator[None]:
    """Works on an extract: no other process does until the block ends.

    It waits `patience` seconds for another process.

    Raises:
        StorageError: another process works on it; names its process id.
    """
    with exclusive_lock(claim_file(settings, key), timeout=patience):
        yield


@contextmanager
def claimed_for_step(context: StepContext, settings: Settings, key: ExtractKey) -> Iterator[None]:
    """Claims an extract for a step; a `kbo` process has claimed it for all its runs already.

    A run that fails because of it is tagged: it may be needed when the other process gives up.

    Raises:
        StorageError: another process works on it; names its process id.
    """
    if is_own(context.run):
        yield
        return
    with ExitStack() as claimed:
        try:
            claimed.enter_context(claim(settings, key))
        except StorageError:
            context.instance.add_run_tags(context.run.run_id, {BUSY_TAG: context.run.run_id})
            raise
        yield


@contextmanager
def claimed_partition(context: StepContext, settings: Settings) -> Iterator[ExtractKey]:
    """The extract of a step's partition, which is claimed until the block ends.

    Raises:
        ExtractError: the partition is no extract, and is removed.
        StorageError: another process works on it; names its process id.
    """
    key = extract_of_partition(context)
    with claimed_for_step(context, settings, key):
        yield key


def extract_of_partition(context: StepContext) -> ExtractKey:
    """The extract of a step's partition.

    Raises:
        ExtractError: the partition is no extract, and is removed.
    """
    try:
        return ExtractKey.parse(context.partition_key)
    except ExtractError as error:
        remove_partition(context.instance, kbo_extracts, context.partition_key)
        raise ExtractError(f"{error}; the partition is removed: add it under its name") from None


def queue_tags(key: ExtractKey, *, is_staged: bool) -> dict[str, str]:
    """Tags of a run about an extract, which `is_staged` when the run applies or publishes.

    Runs come in the order of extracts; those about staged ones come first, or else five runs that
    stage would hold up the register.
    """
    priority = (_AHEAD if is_staged else 0) - 2 * key.number - (key.type == "full")
    return {EXTRACT_TAG: str(key), "dagster/priority": str(priority)}


def last_in_queue(key: ExtractKey) -> dict[str, str]:
    """Tags of a run that reads what is published: any import comes first."""
    return {EXTRACT_TAG: str(key), "dagster/priority": str(-_AHEAD)}
