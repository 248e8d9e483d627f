"""The settings as Dagster's processes load them: once a step, tick or import, in one place.

What is wrong with them is one line in the web UI. What is raised while a code location loads, or a
sensor is evaluated, Dagster shows with all its frames; but not an error that stands for one of
another process.
"""

from dagster_duckdb import DuckDBResource

from kbo_pipeline.core import settings
from kbo_pipeline.core.database import limits
from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.runs.status import in_one_line


def load_settings() -> Settings:
    """What `kbo_pipeline.core.settings.load_settings` gives.

    Raises:
        DagsterError: a setting is unknown or malformed; one line in the web UI.
    """
    try:
        return settings.load_settings()
    except SettingsError as error:
        raise in_one_line(error) from None


AT_IMPORT = load_settings()
"""The settings of the process that loads the code location, for what its definitions depend on."""


def duckdb_resource(settings: Settings) -> DuckDBResource:
    """An in-memory DuckDB; the core attaches the register and staging files to it."""
    config = limits(settings)
    return DuckDBResource(database=":memory:", connection_config=config)
