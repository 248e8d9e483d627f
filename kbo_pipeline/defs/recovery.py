"""Runs whose process died without a word: Dagster's own launcher never notices some of them."""

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from kbo_pipeline.defs.claims import OWN_RUN, claim_file
from kbo_pipeline.defs.progress import EXTRACT_TAG
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.locks import is_locked
from kbo_pipeline.settings import Settings

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


def fail_dead_runs_of_daemon(instance: dg.DagsterInstance) -> None:
    """Fails the runs that an earlier daemon left at work, so that the next one retries them.

    Only for callers who know that no daemon is at work on this data directory.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=_AT_WORK)):
        if OWN_RUN.keys().isdisjoint(run.tags):
            instance.report_run_failed(run, "the process of this run died with its daemon")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
