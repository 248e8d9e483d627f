"""The programs of `kbo start` and of the embedded PostgreSQL, but for the web server.

`python -P -m kbo_pipeline.operate.processes.programs PROGRAM ARGUMENT...`, where PROGRAM is

    with-parent PID MODULE ARGUMENT...  runs a module, which the kernel ends with its parent
    code-server OPTION...               Dagster's own, but for how run workers begin
    daemon FILE OPTION...               Dagster's own, which evaluates sensors each second
    keeper DIRECTORY                    stops an embedded server whose last user was killed

Without `-P`, `python -m` looks for modules in the working directory first, and would execute a file
`queue.py` there in the place of Python's own.

Each child is run `with-parent`, and a `keeper` stays for as long as its server: so this module
imports nothing but the standard library until it knows which program it is.
"""

import ctypes
import fcntl
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LOOP_SECONDS = 1
"""Between two looks of the daemon at which sensors are due.

Dagster's own looks each five seconds and has no setting for it (1.13.27). From a ZIP to readers
three sensors wait for each other, so that such a pause counts three times.
"""

IMPORTED = ["kbo_pipeline.definitions", "dagster._cli.api", "dagster._grpc.server"]
"""What the process imports from which run workers are forked: all that they would import.

Not this module: Python warns of a main module that is imported already.
"""

BEAT_SECONDS = 5.0
"""Between two touches of the file by which `kbo start` sees that the daemon is alive."""

_PR_SET_PDEATHSIG = 1  # Linux: <sys/prctl.h>


def die_with_parent_command(*module: str) -> list[str]:
    """The command that runs a module, with its arguments, as a child of this process.

    The kernel ties it to the thread that starts it, where it can: nothing is left to clean up after
    `kill -9` of the parent.
    """
    program = [sys.executable, "-P", "-m", "kbo_pipeline.operate.processes.programs"]
    return [*program, "with-parent", str(os.getpid()), *module]


def env_file_without_account(base_dir: str) -> dict[str, str]:
    """What Dagster puts into the environment at the start, once, from the `.env` in a directory.

    Without the account: we read it from the file each time, so that a change counts at once.
    """
    from dagster._core.secrets.env_file import get_env_var_dict

    from kbo_pipeline.core.settings import ACCOUNT

    values = get_env_var_dict(base_dir)
    return {name: value for name, value in values.items() if name not in ACCOUNT}


def beat(file: Path) -> None:
    """Touches a file again and again, from a thread, as long as this process runs."""

    def keep_touching() -> None:
        while True:
            with suppress(OSError):  # its directory is made again
                file.touch()
            time.sleep(BEAT_SECONDS)

    threading.Thread(target=keep_touching, daemon=True).start()


def _with_parent(parent: str, *module: str) -> None:
    os.environ["PYTHONSAFEPATH"] = "1"  # for whatever Python the module starts
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before it could take us along
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-P", "-m", *module])


def _code_server(*options: str) -> None:
    """Does what `dagster api grpc` does.

    Dagster starts each run worker as a new interpreter, which imports everything: seconds of
    processor time before anything is done. Here they are forked from a process that has done so.
    """
    from kbo_pipeline.operate import insides

    if insides.are_tested():
        _fork_workers()
    sys.argv[1:] = ["api", "grpc", *options]
    runpy.run_module("dagster", run_name="__main__", alter_sys=True)


def _fork_workers() -> None:
    import multiprocessing
    import tempfile
    from multiprocessing import forkserver

    # Its socket without a directory of its own: the path of one has 104 bytes at most on macOS.
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["tempdir"] = tempfile.gettempdir()
    multiprocessing.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()
    from dagster._cli import utils
    from dagster._grpc import server

    class CodeServer(server.DagsterApiServer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._mp_ctx: Any = multiprocessing.get_context("forkserver")

    utils.get_env_var_dict = env_file_without_account  # type: ignore[attr-defined]
    server.DagsterApiServer = CodeServer  # type: ignore[misc]  # of which its command makes one


def _daemon(touched: str, *options: str) -> None:
    """Does what `dagster-daemon` does, and touches a file all the while."""
    from kbo_pipeline.operate import insides

    beat(Path(touched))
    if insides.are_tested():
        from dagster._daemon import sensor

        sensor.MIN_INTERVAL_LOOP_TIME = LOOP_SECONDS
    sys.argv[1:] = options
    runpy.run_module("dagster._daemon", run_name="__main__", alter_sys=True)


def _keeper(server: str) -> None:
    """Waits until the server in a directory has no user, stops it where it runs, and ends.

    A user that ends in good order stops the server itself when it is the last; one that is killed
    cannot. The kernel drops its lock, for which this waits.
    """
    directory = Path(server)
    own = _open(directory / "keeper.lock")
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # there is one
    while True:
        watched = _open(directory / "watched.lock")
        fcntl.flock(watched, fcntl.LOCK_EX)
        os.close(watched)
        start = _open(directory / "start.lock")
        fcntl.flock(start, fcntl.LOCK_EX)
        if not (directory / "data" / "postmaster.pid").exists():  # its last user has stopped it
            return
        os.close(start)
        from kbo_pipeline.operate.processes.postgres import stop_if_unused

        # The own lock goes while nobody can start the server, which would then have no keeper.
        if stop_if_unused(directory, then=lambda: os.close(own)):
            return


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o600)


_PROGRAMS: dict[str, Callable[..., None]] = {
    "with-parent": _with_parent,
    "code-server": _code_server,
    "daemon": _daemon,
    "keeper": _keeper,
}

if __name__ == "__main__":
    _PROGRAMS[sys.argv[1]](*sys.argv[2:])
