"""Runs whose process died without a word: Dagster's own launcher never notices some of them."""

import time
from typing import Any

import dagster as dg

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import is_locked
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.runs.claims import BUSY_TAG, OWN_RUN, claim_file
from kbo_pipeline.operate.runs.progress import (
    AUTO_RETRY_RUN_ID_TAG,
    EXTRACT_TAG,
    NOT_FINISHED_STATUSES,
    WILL_RETRY_TAG,
    Progress,
    is_cancelled,
)
from kbo_pipeline.operate.runs.workers import drop_locks, is_dead
from kbo_pipeline.operate.undocumented import may_be_retried, retry_once_more

_NOT_RETRIED = "Failed to retry run"  # as Dagster 1.13 says it
_FORGOTTEN_SECONDS = 15.0  # Dagster looks each five seconds for what it is to retry
_AT_WORK = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def end_dead_runs_of_commands(
    instance: dg.DagsterInstance, settings: Settings, claimed: ExtractKey | None = None
) -> None:
    """Cancels the runs of killed `kbo` processes; one of them may hold the place of the writer.

    Args:
        instance: where the runs are recorded.
        settings: say where the claims are: a command that lives holds one.
        claimed: the extract that this process itself has claimed.
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

    One that somebody was ending is canceled instead: nobody wants it retried. Slots in pools are
    free afterwards. Runs on other machines, and of commands, are left alone.

    Args:
        instance: where the runs are recorded.
        settings: say where workers hold their locks.
        ended_at: seconds of the epoch; no worker that `kbo start` launched before lives.

    Returns:
        The ids of the runs.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_AT_WORK)):
        if not OWN_RUN.keys().isdisjoint(run.tags):
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
    """Has Dagster retry runs that failed of nothing of theirs, and that it does not retry itself.

    One that it could not retry because no code server was there: it tries that once, and gives up
    for good. One whose connection to PostgreSQL was lost under Dagster's own code: it takes that
    for a failure of the step, which it does not retry. One that it was going to retry and has
    forgotten: it reads of the failure before it reads the run, which may not say so yet, and then
    never looks again (1.13.27). And one that found its extract claimed by a process which has gone
    since: a command that refused, or was stopped. Reporting the failure again begins it anew,
    within the same limit of retries.

    Args:
        instance: where the runs are recorded.
        settings: say where the claims are.

    Returns:
        The ids of the runs.
    """
    resumed = []
    for extract, record in Progress(instance).newest_runs.items():
        run = record.dagster_run
        if not run.is_failure or is_cancelled(run):
            continue
        if WILL_RETRY_TAG not in run.tags or AUTO_RETRY_RUN_ID_TAG in run.tags:
            continue
        if not may_be_retried(instance, run):
            continue
        if run.tags[WILL_RETRY_TAG] == "true":
            passes = time.time() - (record.end_time or 0.0) > _FORGOTTEN_SECONDS
        elif run.tags.get(BUSY_TAG) == run.run_id:
            passes = not is_locked(claim_file(settings, ExtractKey.parse(extract)))
        else:
            passes = _was_not_retried(instance, run) or _has_lost_postgres(instance, run)
        if passes:
            retry_once_more(instance, run, "what this run failed of has passed; retried once more")
            resumed.append(run.run_id)
    return resumed


def _was_not_retried(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    last = events[-1].dagster_event if events else None
    return last is not None and last.message == _NOT_RETRIED


def _has_lost_postgres(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether all steps that failed did so because of a lost connection, and nothing else."""
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
