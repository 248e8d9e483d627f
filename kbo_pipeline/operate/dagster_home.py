"""The Dagster home: the directory with the instance's configuration. No Dagster."""

import shutil
from pathlib import Path

import kbo_pipeline
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.settings import Settings

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
