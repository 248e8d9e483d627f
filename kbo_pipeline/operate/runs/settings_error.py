"""An error of settings as Dagster's web UI shows it in one line."""

from dagster import DagsterError
from dagster._core.errors import DagsterUserCodeProcessError
from dagster_shared.error import SerializableErrorInfo

from kbo_pipeline.core.errors import SettingsError


def in_one_line(error: SettingsError) -> DagsterError:
    """Stands for an error of another process, which Dagster shows without its own frames."""
    said = SerializableErrorInfo(f"{error}\n", stack=[], cls_name=type(error).__name__)
    standing_for: DagsterError = DagsterUserCodeProcessError(  # type: ignore[no-untyped-call]
        str(error), user_code_process_error_infos=[said]
    )
    return standing_for
