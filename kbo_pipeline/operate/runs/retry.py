"""What `kbo retry` is to run of an extract, whoever runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.runs.progress import (
    PARTITION_TAG,
    PUBLISH_JOB,
    RANGE_END_TAG,
    RANGE_START_TAG,
    REPORTED,
    Progress,
)
from kbo_pipeline.stage.staged import is_staged


@dataclass(frozen=True, slots=True)
class DueRun:
    """A run that an extract needs.

    Attributes:
        job: its job.
        tags: say which partition, or which batches.
        assets: of those of the job; all of them when empty.
    """

    job: str
    tags: Mapping[str, str]
    assets: Sequence[dg.AssetKey] = field(default=())


def due_runs(instance: dg.DagsterInstance, settings: Settings, key: ExtractKey) -> list[DueRun]:
    """The runs that bring an extract one stage further; none when there is nothing to retry.

    Staging is one run, and applying one for each range of missing batches; when these have ended,
    the next stage is due.

    Raises:
        NotReadyError: nothing is known of the extract.
    """
    progress = Progress(instance)
    if key not in progress.known:
        raise NotReadyError(f"{key}: no such extract; see kbo status for the one at work")
    partition = {PARTITION_TAG: str(key)}
    if key in progress.published:
        reported = key in progress.reported
        return [] if reported else [DueRun(PUBLISH_JOB, partition, [REPORTED])]
    if key not in progress.staged or not is_staged(settings.staging_dir, key):
        return [DueRun("stage_extract", partition)]
    ranges = contiguous(progress.missing_batches(key))
    applying = [
        DueRun("apply_batches", {RANGE_START_TAG: first, RANGE_END_TAG: last})
        for first, last in ranges
    ]
    return applying or [DueRun(PUBLISH_JOB, partition)]


def contiguous(keys: Sequence[str]) -> list[tuple[str, str]]:
    """Ranges of batches: a run takes a range of partitions, not a set."""
    ranges: list[tuple[BatchKey, BatchKey]] = []
    for key in map(BatchKey.parse, keys):
        if ranges and ranges[-1][1].number + 1 == key.number:
            ranges[-1] = (ranges[-1][0], key)
        else:
            ranges.append((key, key))
    return [(str(first), str(last)) for first, last in ranges]
