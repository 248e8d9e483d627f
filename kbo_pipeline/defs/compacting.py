"""The job `compact_lake` and its schedule: only where the register is a DuckLake."""

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.compaction import compact
from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.places import Lake
from kbo_pipeline.defs.step import step_guard
from kbo_pipeline.operate.runs.claims import WRITER_POOL


@dg.op(
    pool=WRITER_POOL,
    out=dg.Out(dg.Nothing),
    retry_policy=dg.RetryPolicy(max_retries=3, delay=30),
)
def compact_files(context: dg.OpExecutionContext, duckdb: DuckDBResource) -> None:
    """Makes small files large ones and removes what no reader needs any more."""
    with (
        step_guard(context) as settings,
        duckdb.get_connection() as connection,
    ):
        if not isinstance(settings.database, Lake):
            raise SettingsError(f"KBO_DATABASE: {settings.database} is no DuckLake to compact")
        done = compact(connection, settings.database)
        said = ", ".join(f"{step} {count}" for step, count in done.counts.items())
        context.log.info(f"{said}; {done.files} files, {done.bytes} bytes")


@dg.job(
    name="compact_lake",
    description="Makes the lake's small files large ones, and removes snapshots that are older than"
    " a week, with the files that only they need. Readers see the same before and after.",
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
