"""Runs that end before their work is done, and what runs then: Dagster's retry, or `kbo retry`.

Each worker holds a lock, by which a dead one is known; Dagster's own launcher never notices some of
them.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.files import hold_until_exit, is_locked
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.signals import PATIENCE
from kbo_pipeline.core.tables import ENTERPRISE
from kbo_pipeline.operate import insides
from kbo_pipeline.operate.runs.claims import BUSY_TAG, OWN_RUN, claim_file, is_own
from kbo_pipeline.operate.runs.progress import (
    AUTO_RETRY_RUN_ID_TAG,
    EXTRACT_TAG,
    NOT_FINISHED_STATUSES,
    PARTITION_TAG,
    PUBLISH_JOB,
    RANGE_END_TAG,
    RANGE_START_TAG,
    REPORTED,
    WILL_RETRY_TAG,
    Progress,
    does,
    extract_of,
    is_cancelled,
)
from kbo_pipeline.operate.runtime import is_ours
from kbo_pipeline.stage.staged import is_staged_whole

_NOT_RETRIED = "Failed to retry run"  # as Dagster 1.13 says it
_FORGOTTEN_SECONDS = 15.0  # Dagster looks each five seconds for what it is to retry
_AT_WORK = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_SERVER_TAG = ".dagster/grpc_info"
_APPLIED = dg.AssetKey(ENTERPRISE.name)

WAITING_STATUSES = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)

LAUNCH_SECONDS = 10.0
"""From the moment at which a daemon says that it launches a run until the code server has it."""

_held: set[str] = set()


def hold_run(settings: Settings, run: dg.DagsterRun) -> None:
    """Marks this process as the worker of a run until it ends, however it ends.

    Not for the run of a `kbo` command, which holds a claim on its extract instead.
    """
    if run.run_id not in _held and not is_own(run):
        hold_until_exit(_lock(settings, run.run_id))
        _held.add(run.run_id)


def is_dead(
    instance: dg.DagsterInstance, settings: Settings, run: dg.DagsterRun, *, ended_at: float = 0.0
) -> bool:
    """Tells whether the worker of an unfinished run has certainly ended.

    A worker takes the lock of its run at its first step. A run with a lock is dead when the lock is
    free. One without:

    - is not judged when it was launched by anything but `kbo start`; Dagster watches runs of other
      launchers, such as Kubernetes'.
    - is dead when it was launched before `ended_at`, unless the daemon is on another host, whose
      clock may differ.
    - is dead when the code server does not know it 10 s after its launch: the daemon died while it
      launched it.

    Args:
        instance: has the run.
        settings: say where the locks are.
        run: an unfinished one.
        ended_at: seconds of the epoch; the caller knows that every worker that `kbo start` launched
            before has ended.
    """
    lock = _lock(settings, run.run_id)
    if lock.exists():
        return not is_locked(lock)
    if not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return False
    server = json.loads(run.tags.get(_SERVER_TAG, "{}"))
    if not _is_launched_by_start(settings, run, server):
        return False
    launched_at = instance.get_run_stats(run.run_id).launch_time
    if launched_at is None:
        return False
    if launched_at < ended_at and settings.code_host is None:
        return True
    is_launched = launched_at < time.time() - LAUNCH_SECONDS
    return is_launched and not (server and _has_run(server, run.run_id))


def drop_locks(instance: dg.DagsterInstance, settings: Settings) -> None:
    """Removes the locks of workers that have ended, with their runs.

    Also those not yet renamed, of workers that died while they took them.
    """
    for lock in (settings.work_dir / "runs").glob("*.*"):
        run = instance.get_run_by_id(lock.stem)
        if (run is None or run.is_finished) and not is_locked(lock):
            lock.unlink(missing_ok=True)


def unfinished_runs(instance: dg.DagsterInstance, key: ExtractKey | str) -> list[dg.DagsterRun]:
    """The runs that import or undo an extract and are queued or at work."""
    return [run for run in Progress(instance).unfinished_imports if extract_of(run) == str(key)]


def cancel_waiting_runs(instance: dg.DagsterInstance, key: ExtractKey | str) -> None:
    """Cancels the runs that would import an extract and wait in the queue."""
    for run in unfinished_runs(instance, key):
        if run.status in WAITING_STATUSES:
            instance.report_run_canceled(run, f"{key} is cancelled")


def end_dead_runs_of_commands(
    instance: dg.DagsterInstance, settings: Settings, claimed: ExtractKey | None = None
) -> None:
    """Cancels the runs of killed `kbo` processes; one of them may hold the place of the writer.

    A command that lives holds the claim on its extract, unless this process has `claimed` it.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES, tags=OWN_RUN)):
        extract = ExtractKey.parse(run.tags[EXTRACT_TAG])
        if extract == claimed or not is_locked(claim_file(settings, extract)):
            instance.report_run_canceled(run, "the process of this run was killed")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def end_dead_runs(
    instance: dg.DagsterInstance, settings: Settings, *, ended_at: float = 0.0
) -> list[str]:
    """Fails the runs of a daemon whose worker has died, so that Dagster retries them.

    A run that was being ended is canceled instead, so that it is not retried. Its slots in pools
    are freed. Runs on other machines and of commands are left alone.

    The caller knows that every worker that `kbo start` launched before `ended_at`, in seconds of
    the epoch, has ended.

    Returns:
        The ids of the runs.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_AT_WORK)):
        if is_own(run):
            continue
        if not is_dead(instance, settings, run, ended_at=ended_at):
            continue
        now = instance.get_run_by_id(run.run_id)  # the worker may have ended in good order since
        if now is None or now.is_finished:
            continue
        if now.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(now, "the process of this run has died")
        else:
            instance.report_run_failed(now, "the process of this run has died")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run.run_id)
    drop_locks(instance, settings)
    return ended


def resume_retries(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """Has Dagster retry runs whose failure was not their own, and which it does not retry itself.

    - A run that it could not retry because no code server was there: it tries once and gives up.
    - A run that lost its connection to PostgreSQL under Dagster's own code: Dagster takes that for
      a failure of the step, which it does not retry.
    - A run that it was going to retry and has forgotten: it may learn of the failure before the run
      says so, and never looks again (1.13.27).
    - A run whose extract was claimed by a process that is gone: a command that refused, or was
      stopped.

    Reporting the failure again starts the retry, within the same limit of retries.

    Returns:
        The ids of the runs.
    """
    resumed = []
    progress = Progress(instance)
    newest = [*progress.newest_runs.items(), *progress.last_runs.items()]
    by_id = {record.dagster_run.run_id: (extract, record) for extract, record in newest}
    for extract, record in by_id.values():
        run = record.dagster_run
        if not run.is_failure or is_cancelled(run):
            continue
        if WILL_RETRY_TAG not in run.tags or AUTO_RETRY_RUN_ID_TAG in run.tags:
            continue
        if not _may_be_retried(instance, run):
            continue
        if run.tags[WILL_RETRY_TAG] == "true":
            passes = time.time() - (record.end_time or 0.0) > _FORGOTTEN_SECONDS
        elif run.tags.get(BUSY_TAG) == run.run_id:
            passes = not is_locked(claim_file(settings, ExtractKey.parse(extract)))
        else:
            passes = _was_not_retried(instance, run) or _has_lost_postgres(instance, run)
        if passes:
            _retry_once_more(instance, run, "what made this run fail has passed; retried once more")
            resumed.append(run.run_id)
    return resumed


def _was_not_retried(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    last = events[-1].dagster_event if events else None
    return last is not None and last.message == _NOT_RETRIED


def _has_lost_postgres(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a lost connection is why steps failed, and the only reason."""
    events = [
        entry.dagster_event
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    ]
    return bool(events) and all(
        event is not None and _is_of_postgres(event.step_failure_data.error) for event in events
    )


def _is_of_postgres(error: Any) -> bool:
    """As SQLAlchemy and Dagster name it, at any place in the chain of errors."""
    while error is not None:
        if "(psycopg2." in error.message or error.cls_name == "DagsterPostgresException":
            return True
        error = error.cause
    return False


def _may_be_retried(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether Dagster's limit of retries allows one more of a failed run."""
    if not insides.are_tested():
        return False
    from dagster._core.execution.retries import auto_reexecution_should_retry_run

    return bool(auto_reexecution_should_retry_run(instance, run, None))


def _retry_once_more(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> None:
    """Reports the failure of a run again, so that Dagster decides again whether to retry it."""
    from dagster._core.events import JobFailureData, RunFailureReason

    failure = JobFailureData(error=None, failure_reason=RunFailureReason.RUN_EXCEPTION)
    instance.report_run_failed(run, reason, failure)


def _lock(settings: Settings, run_id: str) -> Path:
    return settings.work_dir / "runs" / f"{run_id}.lock"


def _is_launched_by_start(settings: Settings, run: dg.DagsterRun, server: dict[str, Any]) -> bool:
    if not server:  # its daemon died in the instant before it wrote the tag
        return run.status == dg.DagsterRunStatus.STARTING
    if settings.code_host is not None:  # whatever the daemon calls this host
        return bool(server.get("port") == settings.code_port)
    return is_ours(settings, Path(server.get("socket") or ""))


def _has_run(server: Mapping[str, Any], run_id: str) -> bool:
    """Tells whether the code server at `host` and `port`, or `socket`, has a run, or may have it.

    It may when the server does not answer.
    """
    if not insides.are_tested():
        return True
    from dagster._grpc.client import DagsterGrpcClient
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
    from dagster_shared.serdes import deserialize_value

    client = DagsterGrpcClient(
        host=server.get("host", "localhost"),
        port=server.get("port"),
        socket=server.get("socket"),
    )
    try:
        answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=5)
    except dg.DagsterError:  # unreachable: one that has died is replaced
        return True
    return deserialize_value(answer, CanCancelExecutionResult).can_cancel


class KboRunLauncher(dg.DefaultRunLauncher):
    """Dagster's own launcher, but for the end of runs that apply batches.

    Such a run looks before each batch whether it is to end. Only when it does not get there in time
    is it interrupted, which rolls its batch back.
    """

    def terminate(self, run_id: str) -> bool:
        """Asks a run to end; when asked once more, it is interrupted."""
        run = self._instance.get_run_by_id(run_id) if insides.are_tested() else None
        if (
            run is None
            or run.status != dg.DagsterRunStatus.STARTED
            or not does(run, "apply_batches", _APPLIED)
        ):
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        timer = threading.Timer(PATIENCE, self._interrupt, [run_id])
        timer.daemon = True
        timer.start()
        return True

    def _interrupt(self, run_id: str) -> None:
        try:
            super().terminate(run_id)  # type: ignore[no-untyped-call]
        except Exception as error:  # Dagster's monitoring cancels the run after three minutes
            logging.getLogger("kbo_pipeline").warning("run %s: not interrupted: %s", run_id, error)


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
    if key not in progress.staged or not is_staged_whole(settings.staging_dir, key):
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
