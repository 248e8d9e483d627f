"""The job `rollback_extract`: undoes the newest extract, in the register and in Dagster."""

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.defs.step import step_guard
from kbo_pipeline.operate.runs.claims import WRITER_POOL, claimed_partition
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.operate.runs.progress import (
    EXTRACT_TAG,
    NOT_FINISHED_STATUSES,
    ROLLBACK_JOB,
    extract_of,
    job_of,
)
from kbo_pipeline.operate.runs.retention import forget_extract
from kbo_pipeline.publish.publish import check_rollback, rollback
from kbo_pipeline.read.report import remove_report

_WAITING = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)


@dg.op(name="rollback", pool=WRITER_POOL, out=dg.Out(dg.Nothing))
def rollback_op(context: dg.OpExecutionContext, duckdb: DuckDBResource) -> None:
    """Undoes the extract in one transaction, publishes the state before, forgets its partitions."""
    with (
        step_guard(context) as settings,
        claimed_partition(context, settings) as key,
        duckdb.get_connection() as connection,
    ):
        context.instance.add_run_tags(context.run.run_id, {EXTRACT_TAG: str(key)})
        check_rollback(connection, key, settings.register)
        _end_waiting_runs(context, key)
        done = rollback(connection, settings, key)
        forget_extract(context.instance, key)
        remove_report(settings, key)
        dropped, reopened = sum(done.dropped.values()), sum(done.reopened.values())
        context.log.info(
            f"{key}: was rolled back already"
            if done.already_rolled_back
            else f"{key}: rolled back: {dropped} row versions dropped, {reopened} hold again"
        )


def _end_waiting_runs(context: dg.OpExecutionContext, key: ExtractKey) -> None:
    """Cancels what waits in the queue to import the extract; it would come back at once.

    Raises:
        NotReadyError: such a run is at work.
    """
    for run in context.instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        if run.job_name == ROLLBACK_JOB or extract_of(run) != str(key):
            continue
        if run.status not in _WAITING:
            raise NotReadyError(
                f"{key}: run {run.run_id} ({job_of(run)}) is at work on it; wait for it or"
                " terminate it in the UI"
            )
        context.instance.report_run_canceled(run, f"{key} was rolled back")


@dg.job(
    name=ROLLBACK_JOB,
    partitions_def=kbo_extracts,
    description="Undoes the newest extract, published or half applied: readers see the state"
    " before it, and its partitions are missing again, those of its batches gone until it is"
    " staged again. Materialize them, or kbo retry, to import it again.",
)
def rollback_extract() -> None:
    """Undoes one extract."""
    rollback_op()
