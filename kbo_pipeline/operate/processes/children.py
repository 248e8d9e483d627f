"""The processes of `kbo start`: started, ended with all that they started, asked, their logs kept.

Each child is the leader of a session of its own, in which run workers are too. The sessions are
written down in `work/sessions`, so that the next `kbo start` ends what a killed one left.

A process that lives may not answer: it is stopped, or in a deadlock. A busy one still answers, if
late: each is asked what costs it nothing, and counts as silent after a minute.

A log that has become large is packed into a file of its own, and emptied; whoever writes it holds
it open all the while, to append. What is put aside is limited in number and age, too.

Imports no Dagster.
"""

import gzip
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.files import make_private, replace_atomically
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.processes.programs import BEAT_SECONDS, die_with_parent_command

_STOP_SECONDS = 20.0
_CLOCK_SECONDS = 2.0  # by which the start of a process may differ between two looks at it

SILENT_SECONDS = 60.0
"""So long a process may give no answer."""

_BEGINNING_SECONDS = 180.0  # until it has answered for the first time

_LEAST_ASKED = 4  # we may have been stopped ourselves, between two of them

_ASK_SECONDS = 10.0


MAX_BYTES = 10_000_000
"""A log that is larger is put aside."""

MOST_KEPT = 20
"""Files of one log that were put aside and stay, the newest; about 10 MB each when unpacked."""

_DAY = 86_400.0

_OUTPUTS = (".err", ".out", ".complete", ".partial")


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
        """Where a child's output goes."""
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
        self._running[name].kill()
        self.end(name)

    def end_all(self) -> None:
        """Ends all children, in the reverse order of their start."""
        for name in reversed(self.names):
            self.end(name)

    def _write_down(self) -> None:
        sessions = []
        for child in self._running.values():
            with suppress(psutil.Error):
                sessions.append([child.pid, psutil.Process(child.pid).create_time()])
        with replace_atomically(_record(self.settings, self.part)) as unfinished:
            unfinished.write_text(json.dumps(sessions))


def end_leftovers(settings: Settings, part: str | None = None) -> int:
    """Ends what a killed `kbo start` on this data directory left; returns how many processes.

    Only processes of its sessions, not older than these, and with this data directory in their
    environment: a number may be another program's by now.
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
    while alive := list(_of_session(session, settings, since)):  # they may start others meanwhile
        if time.monotonic() > deadline:
            raise StorageError(f"process {alive[0].pid}: cannot be killed; see what it waits for")
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=5)
        killed += [process for process in alive if process not in killed]
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


@dataclass
class _Silence:
    since: float
    asked: int = 0


class Pulse:
    """Asks processes by their names, each in its own way."""

    def __init__(self, asks: Mapping[str, Callable[[], bool]]) -> None:
        """Takes, for each process, a function that tells within seconds whether it answers."""
        self._asks = asks
        self._silences: dict[str, _Silence] = {}
        self._answered: set[str] = set()
        self._due = 0.0

    def begin(self, name: str) -> None:
        """A process has been started, and may take its time until it answers."""
        self._answered.discard(name)
        self._silences.pop(name, None)

    def silent(self, names: list[str]) -> list[str]:
        """Asks these processes, each few seconds; returns those that are silent for too long."""
        if time.monotonic() < self._due:
            return []
        silent = []
        for name in names:
            if name not in self._asks:
                continue
            if self._asks[name]():
                self._answered.add(name)
                self._silences.pop(name, None)
                continue
            now = time.monotonic()
            silence = self._silences.setdefault(name, _Silence(now))
            silence.asked += 1
            limit = SILENT_SECONDS if name in self._answered else _BEGINNING_SECONDS
            if silence.asked >= _LEAST_ASKED and now - silence.since >= limit:
                silent.append(name)
        self._due = time.monotonic() + _ASK_SECONDS
        return silent


class Beat:
    """Tells whether a file is touched again and again."""

    def __init__(self, file: Path) -> None:
        """Takes the file."""
        self._file = file
        self._seen: int | None = None
        self._changed_at = 0.0

    def __call__(self) -> bool:
        """Whether it was touched lately, by the monotonic clock, as the other one may jump."""
        try:
            touched = self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if touched != self._seen:
            self._seen, self._changed_at = touched, time.monotonic()
        return time.monotonic() - self._changed_at < 3 * BEAT_SECONDS


def alert_log(settings: Settings) -> Path:
    """Where alerts are written, a line each."""
    return log_file(settings, "alerts")


def log_file(settings: Settings, name: str) -> Path:
    """The log of a process of `kbo start`."""
    return settings.work_dir / "logs" / f"{name}.log"


def put_aside(file: Path) -> Path | None:
    """Packs a log that has become large, and empties it; returns where its lines are now.

    A line written in the instant between reading the last one and emptying the log is lost.

    Raises:
        OSError: it cannot be copied; then it stays as it is.
    """
    if not file.exists() or file.stat().st_size <= MAX_BYTES:
        return None
    stamp = time.strftime("%Y-%m-%dT%H%M%S", time.gmtime())
    target = file.with_name(f"{file.name}.{stamp}.gz")
    unfinished = target.with_suffix(".part")
    try:
        with file.open("rb") as source:
            with gzip.open(unfinished, "wb", compresslevel=1) as packed:
                shutil.copyfileobj(source, packed)
            while came_meanwhile := source.read():
                with gzip.open(unfinished, "ab") as packed:
                    packed.write(came_meanwhile)
            shutil.copymode(file, unfinished)
            os.truncate(file, 0)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def remove_old(file: Path, days: int, now: float) -> list[Path]:
    """Removes the files put aside of a log that are older than some days or too many; returns them.

    `now` is in seconds of the epoch.
    """
    aside = sorted(file.parent.glob(f"{file.name}.*.gz"), reverse=True)
    return _remove(
        other
        for place, other in enumerate(aside)
        if place >= MOST_KEPT or _is_older(other, now - days * _DAY)
    )


def remove_old_outputs(settings: Settings, now: float) -> list[Path]:
    """Removes what runs and sensors have printed long ago; returns which files.

    Dagster keeps a file of each for ever. In a `DAGSTER_HOME` of the user's own all of them stay.
    """
    home = settings.dagster_home
    if home != settings.data_dir / "dagster_home":
        return []
    latest = now - settings.keep_logs_days * _DAY
    removed = _remove(
        file
        for file in (home / "storage").rglob("*")
        if file.suffix in _OUTPUTS and _is_older(file, latest)
    )
    for file in removed:
        with suppress(OSError):  # another file is there, or another process was faster
            for directory in file.relative_to(home / "storage").parents[:-1]:
                (home / "storage" / directory).rmdir()
    return removed


def _is_older(file: Path, latest: float) -> bool:
    try:
        return file.stat().st_mtime < latest
    except FileNotFoundError:
        return False


def _remove(files: Iterable[Path]) -> list[Path]:
    removed = list(files)
    for file in removed:
        file.unlink(missing_ok=True)
    return removed
