"""DuckDB, configured in one place, and how errors and stops of a step become Dagster's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline import interrupts
from kbo_pipeline.register import is_transient
from kbo_pipeline.settings import Settings

MEMORY_LIMIT = "3GB"
"""What DuckDB takes at most in one run; it spills to disk beyond."""


def duckdb_resource(settings: Settings) -> DuckDBResource:
    """An in-memory DuckDB; the core attaches the register and staging files to it."""
    settings.temporary_dir.mkdir(parents=True, exist_ok=True)
    return DuckDBResource(
        database=":memory:",
        connection_config={
            "memory_limit": MEMORY_LIMIT,
            "threads": os.cpu_count() or 1,
            "temp_directory": str(settings.temporary_dir),
        },
    )


@contextmanager
def permanent_errors_not_retried(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
) -> Iterator[None]:
    """Lets errors that may pass reach the retry policy, and fails at once for all others.

    A step that somebody has stopped, in the UI or by Ctrl-C, has failed at once too: the retry
    policy would begin it again. Any other interruption goes on to Dagster, which takes the run up
    later.
    """
    try:
        yield
    except dg.Failure:
        raise
    except dg.DagsterExecutionInterruptedError:
        if _is_stopped(context):
            raise dg.Failure(description="stopped", allow_retries=False) from None
        raise
    except Exception as error:
        if isinstance(error.__cause__, dg.DagsterExecutionInterruptedError):  # DuckDB wraps it
            if _is_stopped(context):
                raise dg.Failure(description="stopped", allow_retries=False) from None
            raise error.__cause__ from None
        if is_transient(error):
            raise
        raise dg.Failure(description=str(error), allow_retries=False) from error


def _is_stopped(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> bool:
    run = context.instance.get_run_by_id(context.run.run_id)
    return interrupts.received() or bool(run and run.status == dg.DagsterRunStatus.CANCELING)
