"""Runs whose process died without a word: Dagster's open-source launcher never notices them."""

import dagster as dg

from kbo_pipeline.defs.progress import EXTRACT_TAG
from kbo_pipeline.defs.sensors import claim_file
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.locks import is_locked
from kbo_pipeline.settings import Settings

STARTED_BY_TAG = "kbo/started_by"
"""Tag of runs that live in the process of a command: its value is `kbo`."""

_AT_WORK = (
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def fail_orphaned_runs(
    instance: dg.DagsterInstance, settings: Settings, *, of_command: ExtractKey | None = None
) -> list[str]:
    """Fails runs that nobody works on any more and frees their place in the pools.

    Args:
        instance: where the runs are recorded.
        settings: say where the claims of commands are.
        of_command: only the runs that commands left of this extract, whose claim the caller holds;
            None: all runs, when the caller knows that no daemon is at work. Runs of commands whose
            claim is held are left alone then.

    Returns:
        The ids of the runs.
    """
    orphans = [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=list(_AT_WORK)))
        if _is_orphaned(run, settings, of_command)
    ]
    for run in orphans:
        instance.report_run_failed(run, "the process that worked on it died")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in orphans]


def _is_orphaned(run: dg.DagsterRun, settings: Settings, of_command: ExtractKey | None) -> bool:
    by_command = STARTED_BY_TAG in run.tags
    if of_command is not None:
        return by_command and run.tags.get(EXTRACT_TAG) == str(of_command)
    if by_command:
        return not is_locked(claim_file(settings, ExtractKey.parse(run.tags[EXTRACT_TAG])))
    return True
