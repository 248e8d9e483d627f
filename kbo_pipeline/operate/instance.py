"""The Dagster home, the directory with the instance's configuration; and its instance, opened.

Dagster is imported when an instance is opened: `kbo start` itself needs none.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import kbo_pipeline
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.patience import OF_COMMANDS, set_patience

if TYPE_CHECKING:
    from dagster import DagsterInstance

INSTANCE_FILE = Path(kbo_pipeline.__file__).parent / "dagster.yaml"
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
    from kbo_pipeline.operate.undocumented import instance_without_output

    prepare_dagster_home(settings)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    set_patience(OF_COMMANDS)
    with instance_without_output(settings.dagster_home) as instance:
        yield instance
