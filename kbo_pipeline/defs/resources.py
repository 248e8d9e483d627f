"""DuckDB, configured in one place, and how errors of the core become Dagster's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from dagster_duckdb import DuckDBResource

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
def permanent_errors_not_retried() -> Iterator[None]:
    """Lets errors that may pass reach the retry policy, and fails at once for all others."""
    try:
        yield
    except dg.Failure:
        raise
    except Exception as error:
        if is_transient(error):
            raise
        raise dg.Failure(description=str(error), allow_retries=False) from error
