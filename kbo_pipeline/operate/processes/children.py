"""The processes of `kbo start`: started, ended with all that they started, found again. No Dagster.

Each child is the leader of a session of its own, in which run workers are too. The sessions are
written down in `work/sessions`, so that the next `kbo start` ends what a killed one left.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.processes.logs import log_file
from kbo_pipeline.operate.processes.parent_death import die_with_parent_command

_STOP_SECONDS = 20.0
_CLOCK_SECONDS = 2.0  # by which the start of a process may differ between two looks at it


@dataclass
class Children:
    """The running children, in the order of their start.

    Attributes:
        settings: say where logs and the record go.
        environment: what the children get.
        part: of `kbo start`, which each have a record of their own; None for all of it.
    """

    settings: Settings
    environment: Mapping[str, str]
    part: str | None = None
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of the children, in the order of their start."""
        return list(self._running)

    def log(self, name: str) -> Path:
        """Where a child writes what it has to say."""
        return log_file(self.settings, name)

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Starts `python -m ARGUMENTS`; for the main thread, with which the child would die."""
        log = self.log(name)
        make_private(log.parent)
        with log.open("ab") as out:
            self._running[name] = subprocess.Popen(
                die_with_parent_command(*arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we end them in order
            )
        self._write_down()

    def ended(self) -> dict[str, int]:
        """The exit codes of the children that have ended by themselves."""
        codes = {name: child.poll() for name, child in self._running.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def end(self, name: str) -> None:
        """Ends a child and whatever it started."""
        child = self._running.pop(name)
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        _kill_session(child.pid, self.settings)

    def kill(self, name: str) -> None:
        """Ends a child and whatever it started, at once."""
        child = self._running.pop(name)
        child.kill()
        child.wait()
        _kill_session(child.pid, self.settings)

    def end_all(self) -> None:
        """Ends all children, in the reverse order of their start."""
        for name in reversed(self.names):
            self.end(name)

    def _write_down(self) -> None:
        sessions = []
        for child in self._running.values():
            with suppress(psutil.Error):
                sessions.append([child.pid, psutil.Process(child.pid).create_time()])
        record = _record(self.settings, self.part)
        unfinished = record.with_suffix(".new")
        unfinished.write_text(json.dumps(sessions))
        unfinished.replace(record)


def end_leftovers(settings: Settings, part: str | None = None) -> int:
    """Ends what a killed `kbo start` on this data directory left; returns how many processes.

    Only processes of its sessions that are not older than these, and that have this data directory
    in their environment: a number may have become another program's since.
    """
    try:
        sessions = dict(json.loads(_record(settings, part).read_text()))
    except (OSError, ValueError, TypeError):
        return 0
    return sum(_kill_session(session, settings, since=since) for session, since in sessions.items())


def _record(settings: Settings, part: str | None) -> Path:
    return settings.work_dir / ("sessions" if part is None else f"sessions-{part}")


def _kill_session(session: int, settings: Settings, since: float = 0.0) -> int:
    """Kills the processes of a session, and waits until they are gone."""
    killed: list[psutil.Process] = []
    deadline = time.monotonic() + _STOP_SECONDS
    while found := list(_of_session(session, settings, since)):  # they may start others meanwhile
        if time.monotonic() > deadline:
            raise StorageError(f"process {found[0].pid}: cannot be killed; see what it waits for")
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=5)
        killed += [process for process in found if process not in killed]
        time.sleep(0.01)
    return len(killed)


def _of_session(session: int, settings: Settings, since: float) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if (
                os.getsid(process.pid) == session
                and process.status() != psutil.STATUS_ZOMBIE
                and process.create_time() >= since - _CLOCK_SECONDS
                and process.environ().get("KBO_DATA_DIR") == str(settings.data_dir)
            ):
                yield process
        except (psutil.Error, OSError):
            continue
