"""DuckDB, configured in one place, and how errors and stops of a step become Dagster's."""

from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.database import limits
from kbo_pipeline.core.settings import Settings


def duckdb_resource(settings: Settings) -> DuckDBResource:
    """An in-memory DuckDB; the core attaches the register and staging files to it."""
    config = limits(settings)
    return DuckDBResource(database=":memory:", connection_config=config)
