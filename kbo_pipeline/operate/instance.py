"""The Dagster home, the directory with the instance's configuration; and its instance, opened.

Dagster is imported when an instance is opened: `kbo start` itself needs none.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate import insides
from kbo_pipeline.operate.patience import OF_COMMANDS, set_patience

if TYPE_CHECKING:
    from dagster import DagsterInstance

INSTANCE_FILE = Path(__file__).parents[1] / "dagster.yaml"
"""The instance configuration that travels with the package."""


def prepare_dagster_home(settings: Settings) -> Path:
    """Makes sure that the Dagster home has a configuration; one of the user's own is kept.

    In the home under the data directory the file is ours and follows the version of the package.
    """
    home = settings.dagster_home
    make_private(home)
    target = home / "dagster.yaml"
    ours = home == settings.data_dir / "dagster_home"
    if not target.exists() or (ours and target.read_bytes() != INSTANCE_FILE.read_bytes()):
        shutil.copyfile(INSTANCE_FILE, target)
    return home


@contextmanager
def open_instance(settings: Settings) -> Iterator["DagsterInstance"]:
    """The Dagster instance of these settings; its storage runs until the process ends.

    Raises:
        StorageError: PostgreSQL does not answer as it must.
    """
    prepare_dagster_home(settings)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    set_patience(OF_COMMANDS)
    with _instance_without_output(settings.dagster_home) as instance:
        yield instance


_NOT_CAPTURED = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}


def _instance_without_output(home: Path) -> "DagsterInstance":
    """The instance of a Dagster home, which keeps nothing of what steps print.

    To keep it, Dagster would start four processes a step; Ctrl-C reaches them as well, and two of
    them answer with a traceback.
    """
    from dagster import DagsterInstance

    if not insides.are_tested():
        return DagsterInstance.get()
    from dagster._core.instance.ref import InstanceRef

    return DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=_NOT_CAPTURED))
