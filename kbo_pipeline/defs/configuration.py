"""The settings as Dagster's processes load them: once a step, tick or import, in one place.

What is wrong with them is one line in the web UI. What is raised while a code location loads, or a
sensor is evaluated, Dagster shows with all its frames; but not an error that stands for one of
another process.
"""

from dagster import DagsterError
from dagster._core.errors import DagsterUserCodeProcessError
from dagster_shared.error import SerializableErrorInfo

from kbo_pipeline.core import settings
from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.settings import Settings


def load_settings() -> Settings:
    """What `kbo_pipeline.core.settings.load_settings` gives.

    Raises:
        DagsterError: a setting is unknown or malformed; one line in the web UI.
    """
    try:
        return settings.load_settings()
    except SettingsError as error:
        raise _in_one_line(error) from None


def _in_one_line(error: SettingsError) -> DagsterError:
    said = SerializableErrorInfo(f"{error}\n", stack=[], cls_name=type(error).__name__)
    standing_for: DagsterError = DagsterUserCodeProcessError(  # type: ignore[no-untyped-call]
        str(error), user_code_process_error_infos=[said]
    )
    return standing_for


AT_IMPORT = load_settings()
"""The settings of the process that loads the code location, for what its definitions depend on."""
