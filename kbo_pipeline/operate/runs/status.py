"""The status of an extract, read from Dagster's storage; and errors of runs in one line."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dagster as dg
from dagster import DagsterInstance

from kbo_pipeline.core.errors import NotReadyError, SettingsError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.core.text import OUT_OF_MEMORY, OUT_OF_MEMORY_CLASSES, first_line
from kbo_pipeline.operate import insides
from kbo_pipeline.operate.runs.partitions import kbo_batches
from kbo_pipeline.operate.runs.progress import (
    ROLLBACK_JOB,
    Progress,
    is_retried,
    job_of,
    runs_about,
)

_APPLYING = ("apply_batches", "materialize")

State = Literal["pending", "processing", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """One operation of one table in one batch."""

    table: str
    batch: int
    operation: str


@dataclass(frozen=True, slots=True)
class TableProgress:
    """How many of its batches a table has; `completed` and `total` count batches."""

    completed: int
    total: int
    status: State


@dataclass(frozen=True, slots=True)
class ExtractStatus:
    """How far the import of an extract is.

    Attributes:
        job_id: the extract's key.
        status: `completed` means published.
        stage: what it is at, in words: `staging`, `applying`, `publishing`, ...
        tables: by table name; empty before the extract is cut into batches.
        current_batch: where the running import is: the first batch, and in it the first table and
            operation, that is not committed; None when nothing runs.
        next_batch: the place of the batch after that one, or of the first missing one when nothing
            runs; None when there is none.
        failed_batches: every table of every batch whose last attempt failed.
        error: why the last run of the extract failed; None when it did not.
        rejected_rows: records of the ZIP that are set aside, and not applied.
        seconds_left: estimate from the pace so far; None when there is no pace yet.
    """

    job_id: str
    status: State
    stage: str
    tables: dict[str, TableProgress]
    current_batch: BatchPlace | None
    next_batch: BatchPlace | None
    failed_batches: tuple[BatchPlace, ...]
    error: str | None
    rejected_rows: int
    seconds_left: float | None

    @property
    def completed(self) -> int:
        """Batches that are committed, counted once for each table."""
        return sum(table.completed for table in self.tables.values())

    @property
    def total(self) -> int:
        """All batches, counted once for each table."""
        return sum(table.total for table in self.tables.values())

    @property
    def percentage(self) -> float:
        """Share of the batches that is committed, 0 to 100, with one decimal."""
        return round(100 * self.completed / self.total, 1) if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields that programs rely on; see `kbo status --json` in the README."""
        return {
            "job_id": self.job_id,
            "status": self.status,
            "overall": {
                "completed": self.completed,
                "total": self.total,
                "percentage": self.percentage,
            },
            "tables": {name: asdict(table) for name, table in self.tables.items()},
            "current_batch": asdict(self.current_batch) if self.current_batch else None,
            "next_batch": asdict(self.next_batch) if self.next_batch else None,
            "failed_batches": [asdict(place) for place in self.failed_batches],
            "error": self.error,
            "rejected_rows": self.rejected_rows,
        }


def newest_extract(instance: DagsterInstance) -> ExtractKey:
    """The extract that people ask about: the one at work, or else the newest published one.

    Raises:
        NotReadyError: there is no extract yet.
    """
    progress = Progress(instance)
    published = progress.newest_published
    waiting = [
        key
        for key in progress.known
        if key not in progress.published and (published is None or key.number > published.number)
    ]
    if waiting:
        return min(waiting)
    if published is None:
        raise NotReadyError("no extract yet; start with kbo import ZIP")
    return published


def read_status(instance: DagsterInstance, key: ExtractKey) -> ExtractStatus:
    """How far the import of an extract is.

    Raises:
        NotReadyError: nothing is known of the extract.
    """
    progress = Progress(instance)
    if key not in progress.known:
        raise NotReadyError(f"{key}: no such extract; see kbo status for the one at work")
    applied = progress.applied(key)
    batches = progress.batches.get(key, [])
    runs = runs_about(instance, [key])
    running = next((run for run in runs if not run.is_finished), None)
    failed = _failed(instance, batches)
    done = key in progress.published
    cancelled = running is None and key in progress.cancelled
    is_rolled_back = bool(runs) and runs[0].job_name == ROLLBACK_JOB and runs[0].is_success
    broken = not (done or running or cancelled) and bool(failed or (runs and runs[0].is_failure))
    tables = {
        table.name: _table_progress(
            len(applied[table.name]), len(batches), bool(failed.get(table.name)), running
        )
        for table in TABLES
        if batches
    }
    open_places = [
        _place(table.name, batch)
        for batch in progress.missing_batches(key)
        for table in TABLES
        if batch not in applied[table.name]
    ]
    places = _first_of_each_batch(open_places)
    at_work = running is not None and bool(places) and job_of(running) in _APPLYING
    status: State = "pending"
    if done:
        status = "completed"
    elif broken:
        status = "failed"
    elif running:
        status = "processing"
    elif cancelled:
        status = "cancelled"
    return ExtractStatus(
        job_id=str(key),
        status=status,
        stage=_stage(progress, key, bool(places), status, is_rolled_back),
        tables=tables,
        current_batch=places[0] if at_work else None,
        next_batch=next(iter(places[1:] if at_work else places), None),
        failed_batches=tuple(_place(name, b) for name, keys in failed.items() for b in keys),
        error=error_of_run(instance, runs[0]) if broken and runs else None,
        rejected_rows=progress.rejected_rows(key),
        seconds_left=_seconds_left(instance, running, len(batches), len(places))
        if at_work
        else None,
    )


def is_over(instance: DagsterInstance, status: ExtractStatus) -> bool:
    """Whether nothing goes on by itself.

    It is published, cancelled or rolled back, or has failed and Dagster does not retry it.
    """
    if status.status in ("completed", "cancelled"):
        return True
    newest = Progress(instance).newest_run(ExtractKey.parse(status.job_id))
    if newest is None or status.status == "processing":
        return False
    if status.status == "failed":
        return not is_retried(instance, newest)
    return newest.job_name == ROLLBACK_JOB and newest.is_success


def failure_message(event: dg.DagsterEvent) -> str:
    """Why a step failed, in one line, as our own code said it."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return first_line(data.user_failure_data.description)
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    if error is not None and error.cls_name in OUT_OF_MEMORY_CLASSES:
        return OUT_OF_MEMORY
    return first_line(error.message) if error else "failed without a message"


def step_failure(instance: DagsterInstance, run: dg.DagsterRun) -> dg.DagsterEvent | None:
    """The event of the last step that failed in a run; None when none did."""
    records = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    events = [record.dagster_event for record in records if record.dagster_event]
    return events[-1] if events else None


def error_of_run(instance: DagsterInstance, run: dg.DagsterRun) -> str:
    """Why a run failed, in one line."""
    event = step_failure(instance, run)
    if event is not None:
        return failure_message(event)
    return f"run {run.run_id} ended without a failed step; see it in the UI"


def in_one_line(error: SettingsError) -> dg.DagsterError:
    """Stands for an error of another process, which the web UI shows without its own frames."""
    if not insides.are_tested():
        return dg.DagsterInvalidDefinitionError(str(error))
    from dagster._core.errors import DagsterUserCodeProcessError
    from dagster_shared.error import SerializableErrorInfo

    info = SerializableErrorInfo(f"{error}\n", stack=[], cls_name=type(error).__name__)
    shown: dg.DagsterError = DagsterUserCodeProcessError(  # type: ignore[no-untyped-call]
        str(error), user_code_process_error_infos=[info]
    )
    return shown


def _table_progress(
    completed: int, total: int, failed: bool, running: dg.DagsterRun | None
) -> TableProgress:
    if completed == total:
        return TableProgress(completed, total, "completed")
    state: State = "processing" if running else "failed" if failed else "pending"
    return TableProgress(completed, total, state)


def _place(table: str, batch: str) -> BatchPlace:
    """Where the work on a batch of a table begins."""
    key = BatchKey.parse(batch)
    return BatchPlace(table, key.number, key.extract.operations[0])


def _first_of_each_batch(places: Sequence[BatchPlace]) -> list[BatchPlace]:
    first: dict[int, BatchPlace] = {}
    for place in places:
        first.setdefault(place.batch, place)
    return list(first.values())


def _stage(
    progress: Progress, key: ExtractKey, batches_open: bool, status: State, is_rolled_back: bool
) -> str:
    if status == "completed":
        return "published"
    if is_rolled_back:
        return f"rolled back; kbo retry {key} imports it again"
    if key not in progress.staged or key not in progress.batches:
        return "staging"
    return "applying" if batches_open else "publishing"


def _failed(instance: DagsterInstance, batches: Sequence[str]) -> dict[str, list[str]]:
    """The failed batches of each table that has any."""
    failed = {}
    for table in TABLES:
        statuses = instance.get_status_by_partition(
            dg.AssetKey(table.name), list(batches), kbo_batches
        )
        names = {b for b, s in (statuses or {}).items() if s is not None and s.value == "FAILED"}
        if names:
            failed[table.name] = [batch for batch in batches if batch in names]
    return failed


def _seconds_left(
    instance: DagsterInstance, run: dg.DagsterRun | None, total: int, missing: int
) -> float | None:
    record = instance.get_run_record_by_id(run.run_id) if run else None
    if record is None or record.start_time is None or total == missing:
        return None
    return (time.time() - record.start_time) / (total - missing) * missing
