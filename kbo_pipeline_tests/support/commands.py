"""Runs `kbo` in this process, and gives tests a database cluster that is made once.

A process of its own imports Dagster for two seconds, and a new cluster takes as long: in the tests
that need neither, both are done once for all.
"""

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path

from click.testing import CliRunner

from kbo_pipeline.cli import main
from kbo_pipeline.core import signals
from kbo_pipeline.operate import instance
from kbo_pipeline.operate.processes import postgres, storage
from kbo_pipeline_tests.support.postgres import leave


@contextmanager
def only_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Has exactly these variables within the block, and at its end those from before."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def in_process(
    *arguments: str | Path, environment: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Runs `kbo` in this process, with the variables and the directory of one of its own.

    Raises:
        Exception: the command would end with a traceback.
    """
    words = list(map(str, arguments))
    with _undone(), only_variables(environment), chdir(cwd):
        done = CliRunner().invoke(main, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


@contextmanager
def _undone() -> Iterator[None]:
    """Undoes what a command changes in its process, as it counts on ending with it."""
    began, hook = time.monotonic(), sys.unraisablehook
    handlers = {number: signal.getsignal(number) for number in (*signals.SIGNALS, signal.SIGALRM)}
    limit, _ = signal.getitimer(signal.ITIMER_REAL)  # of pytest-timeout
    patience, servers = instance._seconds, set(postgres._servers)
    signals.received()  # empties its pipe of what tests have sent to their own process
    signals._came = False
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if limit:
            signal.setitimer(signal.ITIMER_REAL, max(limit - (time.monotonic() - began), 0.1))
        sys.unraisablehook = hook
        if patience is not None:
            instance.set_patience(patience)
        for directory in set(postgres._servers) - servers:
            leave(directory)


def copy_cluster(directory: Path) -> None:
    """Puts a cluster with Dagster's tables where a pipeline has its own, unless one is there."""
    if (directory / "data").exists():
        return
    directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", _cluster(), directory / "data"], check=True)


@functools.cache
def _cluster() -> Path:
    """A cluster in which Dagster has made its tables, and whose server has ended."""
    directory = Path(tempfile.mkdtemp(prefix="kbo-cluster-"))
    atexit.register(shutil.rmtree, directory)
    url = postgres.embedded_server_url(directory)
    storage.KboPostgresStorage(storage._engine(url, directory), embedded=directory)
    leave(directory)
    return directory / "data"
