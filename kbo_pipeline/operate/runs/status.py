"""Reads the status of an extract from Dagster's storage."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dagster as dg
from dagster import DagsterInstance
from sqlalchemy import func, select

from kbo_pipeline.core.errors import KboError, NotReadyError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.core.text import OUT_OF_MEMORY, OUT_OF_MEMORY_CLASSES, first_line
from kbo_pipeline.operate import insides, markers
from kbo_pipeline.operate.markers import PAUSED
from kbo_pipeline.operate.runs.live import (
    DEFAULT_SECONDS,
    WORK_STAGES,
    Stage,
    WorkStage,
    overall_share,
    read_live,
    seconds_left,
    share_at_start,
)
from kbo_pipeline.operate.runs.partitions import batch_or_none, batches_by_extract, kbo_batches
from kbo_pipeline.operate.runs.progress import (
    Progress,
    import_runs,
    is_retried,
    is_rollback,
    job_of,
)
from kbo_pipeline.read.published import Proof, last_proof

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
        stage: what it is at, or where it stopped; `done` means published.
        stage_percentage: how much of that stage is done, 0 to 100, with one decimal.
        percentage: how much of the import is done: each stage counts as much as it usually takes.
        operation: what is being done now, in words; None when nothing is at work.
        tables: by table name; empty before the extract is cut into batches.
        current_batch: where the running import is: the first batch, and in it the first table and
            operation, that is not committed; None when nothing runs.
        next_batch: the place of the batch after that one, or of the first missing one when nothing
            runs; None when there is none.
        failed_batches: every table of every batch whose last attempt failed.
        error: why the last run of the extract failed; None when it did not.
        rejected_rows: records of the ZIP that are set aside, and not applied.
        seconds_left: until it is published; None when nothing is at work.
        is_paused: everything waits for `kbo resume`.
        is_rolled_back: somebody has undone it, and nobody has imported it again.
        replaced_by: of one that was rolled back, the extract of its number that is published since.
        proof: how the register compared with KBO's Full the last time; None when it never was.
        run_id: the run at work, or else the newest one; None when there is none.
    """

    job_id: str
    status: State
    stage: Stage
    stage_percentage: float
    percentage: float
    operation: str | None
    tables: dict[str, TableProgress]
    current_batch: BatchPlace | None
    next_batch: BatchPlace | None
    failed_batches: tuple[BatchPlace, ...]
    error: str | None
    rejected_rows: int
    seconds_left: float | None
    is_paused: bool
    is_rolled_back: bool
    replaced_by: ExtractKey | None
    proof: Proof | None
    run_id: str | None

    @property
    def extract(self) -> ExtractKey:
        """The extract."""
        return ExtractKey.parse(self.job_id)

    @property
    def completed(self) -> int:
        """Batches that are committed, counted once for each table."""
        return sum(table.completed for table in self.tables.values())

    @property
    def total(self) -> int:
        """All batches, counted once for each table."""
        return sum(table.total for table in self.tables.values())

    @property
    def batches(self) -> int:
        """All batches, each counted once."""
        return max((table.total for table in self.tables.values()), default=0)

    @property
    def words(self) -> str:
        """What it is at, for people."""
        if self.replaced_by is not None:
            return f"{self.replaced_by} is published in its place"
        if self.is_rolled_back:
            return f"rolled back; kbo retry {self.job_id} imports it again"
        return "published" if self.stage == "done" else self.stage

    def to_json(self) -> dict[str, Any]:
        """The fields that programs rely on; docs/api.md lists them."""
        left = None if self.seconds_left is None else round(self.seconds_left, 1)
        return {
            "job_id": self.job_id,
            "extract_number": self.extract.number,
            "status": self.status,
            "stage": self.stage,
            "stage_percentage": self.stage_percentage,
            "overall": {
                "completed": self.completed,
                "total": self.total,
                "percentage": self.percentage,
            },
            "operation": self.operation,
            "seconds_left": left,
            "paused": self.is_paused,
            "tables": {name: asdict(table) for name, table in self.tables.items()},
            "current_batch": asdict(self.current_batch) if self.current_batch else None,
            "next_batch": asdict(self.next_batch) if self.next_batch else None,
            "failed_batches": [asdict(place) for place in self.failed_batches],
            "error": self.error,
            "rejected_rows": self.rejected_rows,
            "proof": self.proof.to_json() if self.proof else None,
        }


_STAGING, _APPLYING = "stage_extract", ("apply_batches", "materialize")
_FRESH_SECONDS = 30.0  # between two stages

_QUEUED = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)


def newest_extract(instance: DagsterInstance, progress: Progress | None = None) -> ExtractKey:
    """The extract that people ask about: the one at work, or else the newest published one.

    Raises:
        NotReadyError: there is no extract yet.
    """
    progress = progress or Progress(instance)
    published = progress.newest_published
    waiting = [
        key
        for key in progress.known
        if key not in progress.published and (published is None or key.number > published.number)
    ]
    if waiting:  # while a repair is at work, of two the Full, which is staged
        return min(waiting, key=lambda key: (key.number, key not in progress.staged, key))
    if published is None:
        raise NotReadyError("no extract yet; start with kbo import ZIP")
    return published


def read_status(
    instance: DagsterInstance,
    settings: Settings,
    key: ExtractKey,
    progress: Progress | None = None,
) -> ExtractStatus:
    """How far the import of an extract is.

    Args:
        instance: where runs are recorded.
        settings: say where the process at work says how far it is, and whether all is paused.
        key: the extract.
        progress: what was read of the instance already.

    Raises:
        NotReadyError: nothing is known of the extract.
    """
    progress = progress or Progress(instance)
    if key not in progress.known:
        raise NotReadyError(f"{key}: no such extract; see kbo status for the one at work")
    runs = import_runs(instance, [key])
    batches = batches_of(instance, key)
    staged = progress.staged_among([key])
    applied, failed = _attempts(instance, runs, batches, staged.get(key, 0))
    unfinished = [run for run in runs if not run.is_finished]
    started = [run for run in unfinished if run.status not in _QUEUED]
    running = next(iter(started or unfinished), None)
    status = _state(progress, key, running, is_failed=bool(failed or (runs and runs[0].is_failure)))
    is_done, is_open = status == "completed", status in ("pending", "processing")
    is_rolled_back = bool(runs) and is_rollback(runs[0])
    others = (k for k in progress.published if k.number == key.number and k != key)
    replaced_by = next(others, None)
    is_paused = markers.is_paused(settings)
    committed = sum(map(len, applied.values())) / (len(batches) * len(TABLES)) if batches else 0.0
    at_work, is_staged = {run.run_id for run in started}, key in staged and bool(batches)
    position = _position(settings, key, at_work, is_staged, committed)
    # Between two stages an extract has no run at work for some seconds.
    is_waiting = is_open and not (started or position.is_fresh)
    has_operation = status == "processing" or (status == "pending" and position.is_fresh)
    percentage = 100.0 if is_done else min(99.9, _percentage(position.overall))
    places = _open_places(applied, batches)
    is_applying = running is not None and bool(places) and job_of(running) in _APPLYING
    return ExtractStatus(
        job_id=str(key),
        status=status,
        stage="done" if is_done else "waiting" if is_waiting else position.stage,
        stage_percentage=100.0 if is_done else _percentage(position.share),
        percentage=0.0 if is_rolled_back else percentage,
        operation=_operation(position, running, is_waiting=is_waiting, is_paused=is_paused)
        if has_operation
        else None,
        tables=_tables(applied, failed, batches, running),
        current_batch=places[0] if is_applying else None,
        next_batch=next(iter(places[1:] if is_applying else places), None),
        failed_batches=tuple(_place(name, b) for name, keys in failed.items() for b in keys),
        error=error_of_run(instance, runs[0]) if status == "failed" and runs else None,
        rejected_rows=progress.rejected_rows(key),
        seconds_left=position.seconds_left if is_open and not is_paused else None,
        is_paused=is_paused,
        is_rolled_back=is_rolled_back and not is_done,
        replaced_by=replaced_by if is_rolled_back else None,
        proof=last_proof(settings),
        run_id=running.run_id if running else runs[0].run_id if runs else None,
    )


def _state(
    progress: Progress, key: ExtractKey, running: dg.DagsterRun | None, *, is_failed: bool
) -> State:
    if key in progress.published:
        return "completed"
    if running is not None:
        return "processing"
    if key in progress.cancelled:
        return "cancelled"
    return "failed" if is_failed else "pending"


@dataclass(frozen=True, slots=True)
class _Position:
    """Where an import is: the stage, how much of it is done, of all, and how long the rest takes.

    Attributes:
        words: what is being done; None when nobody says so.
        is_fresh: whether the process at work has said so, or the one before it, just now.
    """

    stage: WorkStage
    share: float
    overall: float
    seconds_left: float | None
    words: str | None
    is_fresh: bool


def _position(
    settings: Settings, key: ExtractKey, at_work: set[str], is_staged: bool, committed: float
) -> _Position:
    """Where an import is, by what is committed and by what the process at work says.

    What was said of a stage stays true when its run has ended, so that nothing goes back.

    Args:
        settings: say where the process at work says how far it is.
        key: the extract.
        at_work: ids of the runs that have started and not ended.
        is_staged: whether it is cut into batches.
        committed: share of the batches that are.
    """
    stage: WorkStage = "downloading"
    if is_staged:
        stage = "publishing" if committed == 1 else "applying"
    live = read_live(settings, key)
    if live is None:
        usual = DEFAULT_SECONDS[key.type]
        share = committed if stage == "applying" else 0.0
        return _Position(stage, share, overall_share(usual, stage, share), None, None, False)
    if not is_staged and live.stage == "staging":
        stage = "staging"
    silent = max(0.0, time.time() - live.at)
    is_alive, before = live.run_id in at_work, WORK_STAGES[: WORK_STAGES.index(stage)][-1:]
    if live.stage == stage:
        share = live.share
    elif live.stage in before:
        share = share_at_start(silent, live.usual[stage])
    else:  # of an import before this one
        share = committed if stage == "applying" else 0.0
    is_fresh = silent < _FRESH_SECONDS
    left = None
    if is_alive or is_fresh:
        spent, start = dict(live.spent), 0.0
        if live.stage == stage:
            spent[stage] = live.spent.get(stage, 0.0) + silent
        else:
            start = max(0.0, live.start_seconds - silent)
        left = start + seconds_left(live.usual, stage, share, spent, live.start_seconds)
    words = live.words if is_alive and live.stage == stage else None
    return _Position(stage, share, live.overall(stage, share), left, words, is_fresh)


def _percentage(share: float) -> float:
    return round(100 * share, 1)


def _operation(
    position: _Position, running: dg.DagsterRun | None, *, is_waiting: bool, is_paused: bool
) -> str:
    if is_paused:
        return PAUSED
    if is_waiting:
        return "waiting in the queue"
    is_staging = running is not None and job_of(running) == _STAGING
    is_at_hand = is_staging and position.stage == "downloading"  # the ZIP may be
    coming = "staging" if is_at_hand else position.stage
    return position.words or f"{coming} is about to begin"


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
    return is_rollback(newest)


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


def in_one_line(error: KboError) -> dg.DagsterError:
    """An error that the web UI shows without frames, and no retry policy takes up."""
    if not insides.are_tested():
        return dg.DagsterInvalidDefinitionError(str(error))
    from dagster._core.errors import DagsterUserCodeProcessError
    from dagster_shared.error import SerializableErrorInfo

    info = SerializableErrorInfo(f"{error}\n", stack=[], cls_name=type(error).__name__)
    shown: dg.DagsterError = DagsterUserCodeProcessError(  # type: ignore[no-untyped-call]
        str(error), user_code_process_error_infos=[info]
    )
    return shown


def _tables(
    applied: Mapping[str, set[str]],
    failed: Mapping[str, list[str]],
    batches: Sequence[str],
    running: dg.DagsterRun | None,
) -> dict[str, TableProgress]:
    total, tables = len(batches), {}
    for table in TABLES if batches else ():
        state: State = "processing" if running else "failed" if table.name in failed else "pending"
        completed = len(applied[table.name])
        tables[table.name] = TableProgress(
            completed, total, "completed" if completed == total else state
        )
    return tables


def _place(table: str, batch: str) -> BatchPlace:
    key = BatchKey.parse(batch)
    return BatchPlace(table, key.number, key.extract.operations[0])


def _open_places(applied: Mapping[str, set[str]], batches: Sequence[str]) -> list[BatchPlace]:
    """Where the work on each batch begins that is not applied whole."""
    return [
        _place(missing[0], batch)
        for batch in batches
        if (missing := [table.name for table in TABLES if batch not in applied[table.name]])
    ]


def batches_of(instance: DagsterInstance, key: ExtractKey) -> list[str]:
    """The batch keys of an extract, in number order."""
    if not insides.are_tested():
        return batches_by_extract(instance).get(key, [])
    from dagster._core.storage.event_log import SqlEventLogStorage
    from dagster._core.storage.event_log.schema import DynamicPartitionsTable

    storage, partitions = instance.event_log_storage, DynamicPartitionsTable.c
    assert isinstance(storage, SqlEventLogStorage)
    query = select(partitions.partition).where(
        partitions.partitions_def_name == kbo_batches.name, partitions.partition.like(f"{key}-%")
    )
    with storage.index_connection() as connection:
        keys = [batch_or_none(text) for (text,) in connection.execute(query)]
    return [str(batch) for batch in sorted(batch for batch in keys if batch is not None)]


def _attempts(
    instance: DagsterInstance, runs: Sequence[dg.DagsterRun], batches: Sequence[str], staged: int
) -> tuple[dict[str, set[str]], dict[str, list[str]]]:
    """Batches that are applied, and those whose last attempt failed, by table name.

    Args:
        instance: where it is recorded.
        runs: about the extract.
        batches: keys of its batches.
        staged: storage id of its newest staging; what was tried before does not count.
    """
    if not batches:
        return {table.name: set() for table in TABLES}, {}
    if not insides.are_tested():
        progress = Progress(instance)
        applied = progress.applied(BatchKey.parse(batches[0]).extract)
        is_staged_anew = bool(runs) and job_of(runs[0]) == _STAGING and runs[0].is_success
        failed = {} if is_staged_anew else _failed(instance, batches)
        return {name: set(ids) for name, ids in applied.items()}, failed
    from dagster._core.storage.event_log import SqlEventLogStorage
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    storage, events = instance.event_log_storage, SqlEventLogStorageTable.c
    assert isinstance(storage, SqlEventLogStorage)
    done = dg.DagsterEventType.ASSET_MATERIALIZATION.value
    planned = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value
    names = {dg.AssetKey(table.name).to_string(): table.name for table in TABLES}
    newest = (
        select(func.max(events.id))
        .where(
            events.asset_key.in_(names),
            events.dagster_event_type.in_([done, planned]),
            events.partition.in_(batches),
        )
        .group_by(events.asset_key, events.dagster_event_type, events.partition)
    )
    query = select(
        events.asset_key, events.partition, events.dagster_event_type, events.id, events.run_id
    ).where(events.id.in_(newest))
    newest_events: dict[tuple[str, str, str], tuple[int, str]] = {}
    with storage.index_connection() as connection:
        for asset, batch, event_type, event_id, run_id in connection.execute(query):
            newest_events[names[asset], batch, event_type] = event_id, run_id
    failures = {run.run_id for run in runs if run.is_failure}
    nothing = (0, "")
    applied_, failed = {table.name: set[str]() for table in TABLES}, dict[str, list[str]]()
    for table in TABLES:
        for batch in batches:
            applied_id, _ = newest_events.get((table.name, batch, done), nothing)
            planned_id, run_id = newest_events.get((table.name, batch, planned), nothing)
            if applied_id > staged:
                applied_[table.name].add(batch)
            if planned_id > max(applied_id, staged) and run_id in failures:
                failed.setdefault(table.name, []).append(batch)
    return applied_, failed


def _failed(instance: DagsterInstance, batches: Sequence[str]) -> dict[str, list[str]]:
    failed = {}
    for table in TABLES:
        statuses = instance.get_status_by_partition(
            dg.AssetKey(table.name), list(batches), kbo_batches
        )
        names = {b for b, s in (statuses or {}).items() if s is not None and s.value == "FAILED"}
        if names:
            failed[table.name] = [batch for batch in batches if batch in names]
    return failed
