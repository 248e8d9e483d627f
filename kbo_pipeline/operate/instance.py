"""Dagster's instance, opened by commands: its storage runs until the process ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef

from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.dagster_home import prepare_dagster_home
from kbo_pipeline.operate.patience import OF_COMMANDS, set_patience

_NOT_CAPTURED = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}
"""What a step prints is for the terminal alone. To keep it too, Dagster would start four processes
a step; Ctrl-C reaches them as well, and two of them answer with a traceback."""


@contextmanager
def open_instance(settings: Settings) -> Iterator[DagsterInstance]:
    """The Dagster instance of these settings; its storage runs until the process ends.

    Raises:
        StorageError: PostgreSQL does not answer as it must.
    """
    prepare_dagster_home(settings)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    set_patience(OF_COMMANDS)
    ref = InstanceRef.from_dir(str(settings.dagster_home), overrides=_NOT_CAPTURED)
    with DagsterInstance.from_ref(ref) as instance:
        yield instance
