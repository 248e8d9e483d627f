"""The jobs: one for each verb that a person or a sensor starts."""

import dagster as dg
from dagster_duckdb import DuckDBResource
from duckdb import DuckDBPyConnection

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.lake import compact
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES
from kbo_pipeline.core.text import counted, megabytes
from kbo_pipeline.defs.step import step_guard
from kbo_pipeline.operate.runs.claims import WRITER_POOL, claimed_partition
from kbo_pipeline.operate.runs.live import forget_live
from kbo_pipeline.operate.runs.partitions import (
    forget_extract,
    kbo_extracts,
    remove_partition,
    staging_asset,
)
from kbo_pipeline.operate.runs.progress import (
    ACCEPT_LOSS_TAG,
    EXPORT_JOB,
    EXTRACT_TAG,
    PUBLISHED,
    REPAIR_TAG,
    REPORTED,
    ROLLBACK_JOB,
    SEARCH_JOB,
    VERIFY_JOB,
    Progress,
    extract_of,
    imports,
    job_of,
)
from kbo_pipeline.operate.runs.recovery import WAITING_STATUSES
from kbo_pipeline.publish.correction import begin_repair
from kbo_pipeline.publish.publish import check_rollback, rollback
from kbo_pipeline.read.report import remove_report
from kbo_pipeline.stage.staged import staging_file

stage_extract = dg.define_asset_job(
    "stage_extract",
    selection=["extract_zip", *(staging_asset(table) for table in ALL_TABLES)],
    description="Takes one extract's ZIP and loads it into its staging file.",
)

apply_batches = dg.define_asset_job(
    "apply_batches",
    selection=dg.AssetSelection.assets(*(table.name for table in TABLES)).without_checks(),
    description="Applies batches of a staged extract to the register.",
)

publish_extract = dg.define_asset_job(
    "publish_extract",
    # Publishing checks what it publishes; the checks by themselves look at what is published.
    selection=dg.AssetSelection.assets(CODE.name, PUBLISHED, REPORTED).without_checks(),
    description="Publishes an extract whose batches are all applied, and makes the report on what"
    f" it changed. The tag `{ACCEPT_LOSS_TAG}`, with your name, publishes an Update that removes"
    " many rows.",
)

export_parquet = dg.define_asset_job(
    EXPORT_JOB,
    selection=["parquet_export"],
    description="Writes the current tables of the newest published extract as Parquet.",
)

build_search_index = dg.define_asset_job(
    SEARCH_JOB,
    selection=["search_index"],
    description="Makes the search index of what is published, or brings it up to date.",
)

verify_full = dg.define_asset_job(
    VERIFY_JOB,
    selection=["full_verification"],
    description="Compares the register, as it was at an extract, with the Full of its number, which"
    " has to be in the downloads directory.",
)


@dg.op(
    pool=WRITER_POOL,
    out=dg.Out(dg.Nothing),
    retry_policy=dg.RetryPolicy(max_retries=3, delay=30),
)
def compact_files(context: dg.OpExecutionContext, duckdb: DuckDBResource) -> None:
    """Merges small files and removes those that no reader needs any more."""
    with (
        step_guard(context) as settings,
        duckdb.get_connection() as connection,
    ):
        done = compact(connection, settings.database)
        counts = ", ".join(f"{step} {count}" for step, count in done.counts.items())
        context.log.info(f"{counts}; {done.files:,} files, {megabytes(done.bytes)}")


@dg.job(
    name="compact_lake",
    description="Merges the lake's small files, and removes snapshots that are older than a week"
    " with the files that only they need. Readers see no difference.",
)
def compact_lake() -> None:
    """Compacts the lake."""
    compact_files()


compact_weekly = dg.ScheduleDefinition(
    name="compact_weekly",
    job=compact_lake,
    cron_schedule="0 3 * * 0",
    execution_timezone="Europe/Brussels",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Compacts the lake in the night from Saturday to Sunday.",
)


@dg.op(name="rollback", pool=WRITER_POOL, out=dg.Out(dg.Nothing))
def rollback_op(context: dg.OpExecutionContext, duckdb: DuckDBResource) -> None:
    """Undoes the extract in one transaction, publishes the state before, forgets its partitions.

    Where `kbo repair` started it, readers keep what they have until the Full is published.
    """
    with (
        step_guard(context) as settings,
        claimed_partition(context, settings) as key,
        duckdb.get_connection() as connection,
    ):
        context.instance.add_run_tags(context.run.run_id, {EXTRACT_TAG: str(key)})
        check_rollback(connection, key, settings.register)
        _end_waiting_runs(context, key)
        if REPAIR_TAG in context.run.tags:
            _begin_repair(context, connection, settings, key)
            return
        done = rollback(connection, settings, key)
        forget_extract(context.instance, key)
        remove_report(settings, key)
        forget_live(settings, key)
        dropped, reopened = sum(done.dropped.values()), sum(done.reopened.values())
        context.log.info(
            f"{key}: was rolled back already"
            if done.already_rolled_back
            else f"{key}: rolled back: {dropped:,} row versions dropped, {reopened:,} valid again"
        )


def _begin_repair(
    context: dg.OpExecutionContext,
    connection: DuckDBPyConnection,
    settings: Settings,
    key: ExtractKey,
) -> None:
    """Undoes an extract for the staged Full that the tag of the run names."""
    instance, full = context.instance, ExtractKey.parse(context.run.tags[REPAIR_TAG])
    begun = begin_repair(connection, settings, full)
    if begun.keys:
        forget_extract(instance, key, is_staged=key == full)
        remove_report(settings, key)
        context.log.info(f"{key}: undone for {full}: {counted(begun.keys, 'key')} differ")
        return
    staging_file(settings.staging_dir, full).unlink(missing_ok=True)
    if key != full:
        forget_extract(instance, full, is_whole=True)
        remove_partition(instance, kbo_extracts, str(full))
    context.log.info(f"{key}: equal to {full} in the register at work: readers have it again")


def _end_waiting_runs(context: dg.OpExecutionContext, key: ExtractKey) -> None:
    """Cancels the runs in the queue that would import the extract again, export or compare it.

    One that exports or compares it already is let be: it reads the file that was published, and
    sees at its end that the extract is not any more.

    Raises:
        NotReadyError: a run that imports it is at work.
    """
    for run in Progress(context.instance).unfinished_runs:
        if extract_of(run) != str(key) or run.job_name in (ROLLBACK_JOB, SEARCH_JOB):
            continue
        if run.status in WAITING_STATUSES:
            context.instance.report_run_canceled(run, f"{key} was rolled back")
        elif imports(run):
            raise NotReadyError(
                f"{key}: run {run.run_id} ({job_of(run)}) is at work on it; wait for it or"
                " terminate it in the UI"
            )


@dg.job(
    name=ROLLBACK_JOB,
    partitions_def=kbo_extracts,
    description="Undoes the newest extract, published or partly applied: readers see the state"
    " before it, and its partitions and those of its batches are missing again. To import it again,"
    " launch stage_extract for its partition, and the rest follows by itself; or run kbo retry.",
)
def rollback_extract() -> None:
    """Undoes one extract."""
    rollback_op()
