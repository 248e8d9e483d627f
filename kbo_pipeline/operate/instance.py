"""The Dagster home, its instance, and how long a silent PostgreSQL is waited for.

Dagster is imported when an instance is opened: `kbo start` itself needs none.

libpq waits for ever for a server that takes a connection and then says nothing: its process is
stopped, or its machine is gone. psycopg2 lets us wait in its place, with a limit.
"""

import glob
import os
import select
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate import insides

if TYPE_CHECKING:
    from dagster import DagsterInstance

INSTANCE_FILE = Path(__file__).parents[1] / "dagster.yaml"
"""The instance configuration that travels with the package."""

_NOT_CAPTURED = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}

OF_COMMANDS = 10.0
"""Seconds for what a person waits for."""

OF_WORK = 60.0
"""Seconds for what goes on by itself, and for runs: the server may be busy."""

_PING_SECONDS = 5.0

_seconds: float | None = OF_WORK


def prepare_dagster_home(settings: Settings) -> Path:
    """Makes sure that the Dagster home has a configuration; one of the user's own is kept.

    In the home under the data directory the file is ours and follows the version of the package.

    Raises:
        SettingsError: Dagster would not find it, and silently use SQLite (1.13.27).
    """
    home = settings.dagster_home
    if glob.has_magic(str(home)):
        raise SettingsError(
            f"{home}: Dagster does not find its configuration in a directory with * or [ in its"
            " path; choose another KBO_DATA_DIR, or DAGSTER_HOME"
        )
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


class SilentError(psycopg2.OperationalError):
    """PostgreSQL has not answered in time; the connection is closed."""


def set_patience(seconds: float) -> None:
    """Says how long this process waits for an answer, from now on."""
    global _seconds
    _seconds = seconds


@contextmanager
def patience(seconds: float | None) -> Iterator[None]:
    """Waits so long within the block; None is for ever."""
    global _seconds
    before, _seconds = _seconds, seconds
    try:
        yield
    finally:
        _seconds = before


def limit_silence() -> None:
    """Lets this process give up connections with PostgreSQL on which nothing comes for too long."""
    extensions.set_wait_callback(_wait)


def server_answers(url: str) -> bool:
    """Tells whether a server answers within seconds; also where a lock is not free.

    Args:
        url: its address, for SQLAlchemy or for libpq.
    """
    limit_silence()
    with patience(_PING_SECONDS):
        try:
            connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
            connection.cursor().execute("SELECT 1")
            connection.close()
        except psycopg2.OperationalError:
            return False
    return True


def _wait(connection: Any) -> None:
    """Waits until psycopg2 has its answer; it closes the connection when this raises.

    Raises:
        SilentError: the server is silent.
    """
    while (state := connection.poll()) != extensions.POLL_OK:
        awaited = select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
        poller = select.poll()
        poller.register(connection.fileno(), awaited)
        if not poller.poll(None if _seconds is None else _seconds * 1000):
            raise SilentError(f"no answer in {_seconds:.0f} s")
