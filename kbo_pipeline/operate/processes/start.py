"""`kbo start`: code location, daemon and web UI as children of one process. Imports no Dagster.

Or one of the three, for processes on several hosts: then they talk over TCP, and PostgreSQL is a
server that all reach. The host of the code location has the data directory: what looks after the
register and the runs goes with it.
"""

import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import yaml

from kbo_pipeline.core import signals as interrupts
from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.settings import ACCOUNT, Settings
from kbo_pipeline.core.text import first_line
from kbo_pipeline.operate.instance import prepare_dagster_home, server_answers
from kbo_pipeline.operate.markers import drop_lost
from kbo_pipeline.operate.processes.children import (
    SILENT_SECONDS,
    Beat,
    Children,
    Pulse,
    alert_log,
    end_leftovers,
    log_file,
    put_aside,
    remove_old,
    remove_old_outputs,
)
from kbo_pipeline.operate.processes.postgres import embedded_server_url, sqlalchemy_url
from kbo_pipeline.operate.runtime import (
    CHILDREN,
    Part,
    Runtime,
    check_part,
    check_port,
    is_open,
    reached,
    runtime_directory,
    suffix,
    ui_address,
)

_START_SECONDS = 90.0
_CHECK_SECONDS = 0.5
_LOOK_SECONDS = 30.0  # between two looks at runs whose worker has died
_LAUNCHED_SECONDS = 12.0  # after a daemon's death it is clear whether a run of its was begun
_TIDY_SECONDS = 10.0  # between two looks at how large logs are
_REMOVAL_SECONDS = 3600.0  # between two searches for what runs have printed long ago
_SETTLE_SECONDS = 5.0  # until daemon and web server have found a new code server
_DEATHS = 8  # of one child in _DEATHS_SECONDS: then it is no accident
_DEATHS_SECONDS = 150.0
_LONGEST_PAUSE = 16
_RUNTIME_SECONDS = 5.0  # between two looks at the runtime directory
_ASK_SECONDS = 5.0
_PROGRAMS = "kbo_pipeline.operate.processes.programs"
_RETRY = "retry"  # the child that imports again what was lost
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


Recover = Callable[[float, bool], ExtractKey | None]
"""Fails the runs whose worker is dead, and repairs what was lost: `operate.repair.repair.watch`.

`commands.operate` hands it to `serve`, because processes know no repair.

It takes an instant, in seconds of the epoch, so that no worker lives that `kbo start` on this data
directory launched before; and whether nothing runs yet. It returns an extract that `kbo retry` is
to bring to its end now.
"""


class _Stopped(BaseException):
    """A signal asked us to end; no Exception, so that no code takes it for a failure."""


def serve(
    settings: Settings,
    report: Callable[[str], None],
    recover: Recover,
    has_code_server: Callable[[Path], bool],
    *,
    part: Part | None = None,
    read_only: bool = False,
) -> None:
    """Runs everything, or one part, until a signal comes; then ends all children.

    A child that dies is started again, after growing pauses. What a killed `kbo start` left is
    ended first.

    Args:
        settings: the settings; the children get them as environment.
        report: takes a line for the person who watches.
        recover: called before anything runs, when a new code server is there, and each half minute;
            not for a part without the code location.
        has_code_server: tells within seconds whether the code server answers on this socket, or at
            `KBO_CODE_HOST`; asked where its child runs.
        part: what runs; all of it when None.
        read_only: nobody can start or change anything in the web UI.

    Raises:
        StorageError: another `kbo start` runs on this data directory (names its process), or a
            child does not start, or dies again and again.
        SettingsError: a port is taken, or the settings are not those of such a part.
    """
    check_part(settings, part)
    # kbo doctor holds it for an instant, to see whether it is held.
    with exclusive_lock(start_lock(settings, part), timeout=0.5):
        if left := end_leftovers(settings, part):
            report(f"ended {left} processes of an earlier kbo start that was killed")
        if part in (None, "web"):
            check_port("KBO_UI_PORT", settings.ui_host, settings.ui_port)
        if part == "code" and settings.code_host is not None:
            check_port("KBO_CODE_PORT", settings.code_host, settings.code_port)
        prepare_dagster_home(settings)
        lost = recover(time.time(), True) if part in (None, "code") else None
        try:
            with (
                runtime_directory(settings, part, _workspace(settings)) as runtime,
                _ended_by_signals() as check_stopped,
                _children(settings, part, runtime.path) as children,
            ):
                _Supervisor(
                    *(settings, children, runtime, report, recover, has_code_server),
                    part=part,
                    read_only=read_only,
                ).run(lost, check_stopped)
        except _Stopped:
            report("stopped")


def start_lock(settings: Settings, part: Part | None = None) -> Path:
    """The lock of the `kbo start` on this data directory; the one with the code location has it."""
    return settings.work_dir / f"start{suffix(part)}.lock"


def _workspace(settings: Settings) -> str:
    """The workspace file, with `SOCKET` for the code server's socket, where it has one."""
    location: dict[str, str | int] = {"location_name": "kbo_pipeline"}
    if settings.code_host is None:
        location["socket"] = "SOCKET"
    else:
        location |= {"host": reached(settings.code_host), "port": settings.code_port}
    return str(yaml.safe_dump({"load_from": [{"grpc_server": location}]}))


def tidy_logs(settings: Settings, names: Iterable[str], report: Callable[[str], None]) -> None:
    """Puts aside logs that are large, and removes what was put aside long ago.

    Args:
        settings: say where logs are and how long they stay.
        names: the processes with a log; with the code location come alerts, and PostgreSQL's own.
        report: takes a line on each log that cannot be put aside.
    """
    files = [log_file(settings, name) for name in names]
    if "code" in names:
        files += [alert_log(settings), settings.postgres_dir / "log"]
    for file in files:
        try:
            put_aside(file)
            remove_old(file, settings.keep_logs_days, time.time())
        except OSError as error:
            report(f"{file}: cannot be put aside ({error.strerror}); it is tried again")


class _Supervisor:
    """Starts the children in order, watches them, and starts again what has died or is silent."""

    def __init__(
        self,
        settings: Settings,
        children: Children,
        runtime: Runtime,
        report: Callable[[str], None],
        recover: Recover,
        has_code_server: Callable[[Path], bool],
        *,
        part: Part | None = None,
        read_only: bool,
    ) -> None:
        self._settings, self._children, self._part = settings, children, part
        self._report, self._recover = report, recover
        self._retried: ExtractKey | None = None
        self._is_read_only = read_only
        self._runtime, self._socket = runtime, runtime.code_socket
        self._address = ui_address(settings)
        if settings.code_host is None:
            listen = ["-s", str(self._socket)]
        else:
            listen = ["-h", settings.code_host, "-p", str(settings.code_port)]
        workspace = str(runtime.workspace)
        self._arguments = {
            "code": (
                *(_PROGRAMS, "code-server", "-m", "kbo_pipeline.definitions"),
                "--empty-working-directory",  # or else Dagster looks there for modules first
                *(*listen, "--location-name", "kbo_pipeline"),
            ),
            "daemon": (
                *(_PROGRAMS, "daemon", str(runtime.beat)),
                *("run", "-w", workspace),
            ),
            "webserver": (
                *("kbo_pipeline.operate.processes.webserver", "--host", settings.ui_host),
                *("--port", str(settings.ui_port)),
                *("--workspace", workspace, *(["--read-only"] if read_only else [])),
            ),
        }
        self._deaths: dict[str, list[float]] = {name: [] for name in CHILDREN[part]}
        self._due: dict[str, float] = {}  # when what has died is started again
        self._ended_at = time.time()  # of all run workers launched before
        self._is_settled = True
        self._next_look = time.monotonic() + _LOOK_SECONDS
        self._next_tidying = time.monotonic()
        self._next_removal = time.monotonic()
        self._next_runtime_look = 0.0
        self._pulse = Pulse(
            {
                "code": lambda: has_code_server(self._socket),
                "daemon": Beat(runtime.beat),
                "webserver": lambda: answers(f"{self._address}/server_info", _ASK_SECONDS),
            }
        )

    def run(self, lost: ExtractKey | None, check_stopped: Callable[[], None]) -> None:
        """Returns by an exception only.

        Args:
            lost: an extract to be retried at once.
            check_stopped: raises when a signal has asked us to end, though it was swallowed.
        """
        self._report(f"logs: {self._children.log('code').parent}")
        if self._part in ("daemon", "web"):
            self._wait_for_code_location(check_stopped)
        for name in CHILDREN[self._part]:
            self._start(name)
            if name == "code":
                self._wait_until(self._has_code_server)
        if self._part in (None, "web"):
            self._wait_until(lambda: answers(f"{self._address}/server_info"))
            kind = "web UI, read only" if self._is_read_only else "web UI"
            ended = "everything" if self._part is None else "it"
            self._report(f"{kind}: {self._address}  (Ctrl-C ends {ended})")
        else:
            self._report(f"{self._part}: runs  (Ctrl-C ends it)")
        self._retry(lost)
        while True:
            for name, code in self._children.ended().items():
                if name == _RETRY:
                    self._end_retry(code)
                else:
                    self._replace(name, f"ended with code {code}")
            for name, due in list(self._due.items()):
                if time.monotonic() >= due:
                    del self._due[name]
                    self._start(name)
            self._look_after_runtime()
            self._look_for_silent_ones()
            if self._part in (None, "code"):
                self._look_for_dead_runs()
            self._tidy_logs()
            check_stopped()
            time.sleep(_CHECK_SECONDS)

    def _wait_for_code_location(self, check_stopped: Callable[[], None]) -> None:
        """Before it is there, Dagster would note that it is missing, and look a minute later."""
        if self._has_code_server():
            return
        host, port = self._settings.code_host, self._settings.code_port
        self._report(f"waiting for the code location at {host}:{port}")
        while not self._has_code_server():
            check_stopped()
            time.sleep(_CHECK_SECONDS)

    def _has_code_server(self) -> bool:
        if self._settings.code_host is None:
            return self._socket.exists()
        return is_open(self._settings.code_host, self._settings.code_port)

    def _start(self, name: str) -> None:
        self._pulse.begin(name)
        self._children.start(name, self._arguments[name])

    def _replace(self, name: str, what: str) -> None:
        """Ends what is left of a child, and plans its next start.

        Raises:
            StorageError: it has died too often.
        """
        self._children.kill(name)
        if name == "code":  # and with it the run workers
            self._ended_at = time.time()
            self._runtime.drop_sockets()
            self._is_settled = False
        now = time.monotonic()
        if name == "daemon":  # a run that it was launching may never have begun
            self._next_look = min(self._next_look, now + _LAUNCHED_SECONDS)
        recent = [t for t in self._deaths[name] if now - t < _DEATHS_SECONDS] + [now]
        self._deaths[name] = recent
        log = self._children.log(name)
        if len(recent) >= _DEATHS:
            raise StorageError(
                f"{name}: {what}, for the {len(recent)}th time in {_DEATHS_SECONDS:.0f} s;"
                f" see {log}, fix the cause, then start again"
            )
        pause = min(2 ** (len(recent) - 1), _LONGEST_PAUSE)
        self._due[name] = now + pause
        self._report(f"{name}: {what}; it is started again in {pause} s; see {log}")

    def _look_after_runtime(self) -> None:
        """Makes again what was cleaned away; sockets come with a new code server."""
        if time.monotonic() < self._next_runtime_look:
            return
        self._next_runtime_look = time.monotonic() + _RUNTIME_SECONDS
        if lost := self._runtime.lost():
            try:
                has_lost_sockets = self._runtime.has_lost_sockets()
                self._runtime.restore()
            except OSError as error:
                self._report(f"{lost[0]}: is gone, and cannot be made: {error}; it is tried again")
                return
            self._report(f"{lost[0]}: was gone, and is made again")
            if has_lost_sockets and "code" in self._children.names:
                self._replace("code", "its sockets were gone")
        elif self._settings.code_host is None and self._socket.exists():
            self._runtime.note_sockets()

    def _look_for_silent_ones(self) -> None:
        """Not while PostgreSQL does not answer either: they wait for it, and would again."""
        silent = self._pulse.silent(self._children.names)
        if silent and self._has_postgres():
            for name in silent:
                self._replace(name, f"lives, and has not answered for {SILENT_SECONDS:.0f} s")

    def _has_postgres(self) -> bool:
        try:
            url = self._settings.postgres_url or embedded_server_url(self._settings.postgres_dir)
        except StorageError:
            return False
        return server_answers(sqlalchemy_url(url))

    def _look_for_dead_runs(self) -> None:
        """Not while the code server is away: Dagster then gives up a retry for good."""
        if not self._has_code_server():
            self._is_settled = False
        elif not self._is_settled:
            self._is_settled, self._next_look = True, time.monotonic() + _SETTLE_SECONDS
        elif time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
            try:
                self._retry(self._recover(self._ended_at, False))
            except Exception as error:  # whatever it is, mostly PostgreSQL: it passes
                reason = first_line(f"{type(error).__name__}: {error}")
                self._report(f"looking for dead runs failed: {reason}; it is tried again")

    def _tidy_logs(self) -> None:
        now = time.monotonic()
        if now >= self._next_tidying:
            self._next_tidying = now + _TIDY_SECONDS
            tidy_logs(self._settings, [*CHILDREN[self._part], _RETRY], self._report)
        if now >= self._next_removal and self._part in (None, "code"):
            self._next_removal = now + _REMOVAL_SECONDS
            try:
                remove_old_outputs(self._settings, time.time())
            except OSError as error:
                self._report(f"{error.filename}: cannot be removed ({error.strerror})")

    def _retry(self, key: ExtractKey | None) -> None:
        """Brings an extract to its end in a process of its own, one at a time."""
        if key is not None and _RETRY not in self._children.names:
            self._report(f"{key}: imported again, or to its end; see {self._children.log(_RETRY)}")
            self._retried = key
            self._children.start(_RETRY, ("kbo_pipeline.cli", "retry", str(key)))

    def _end_retry(self, code: int) -> None:
        self._children.end(_RETRY)
        assert self._retried is not None
        drop_lost(self._settings, self._retried)  # whatever came of it: a failure is reported
        self._next_look = time.monotonic()
        if code != 0:
            log = self._children.log(_RETRY)
            self._report(f"{self._retried}: not imported; see {log}, then kbo retry it")

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            for name, code in self._children.ended().items():
                raise StorageError(
                    f"{name}: ended with code {code}; see {self._children.log(name)}, then start"
                    " again"
                )
            if time.monotonic() > deadline:
                name = self._children.names[-1]
                raise StorageError(
                    f"{name}: not ready in {_START_SECONDS:.0f} s; see {self._children.log(name)}"
                )
            time.sleep(0.1)


@contextmanager
def _ended_by_signals() -> Iterator[Callable[[], None]]:
    """Lets signals raise `_Stopped`; yields what raises it again, should a library swallow it.

    DuckDB turns whatever is raised while it is at work into an error of its own.
    """
    is_told = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_told
        is_told = True
        raise _Stopped

    def check_stopped() -> None:
        if is_told:
            raise _Stopped

    before = {number: signal.signal(number, stop) for number in interrupts.stopping()}
    try:
        yield check_stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _children(settings: Settings, part: Part | None, runtime: Path) -> Iterator[Children]:
    """Ends all children that were started, when the block ends."""
    environment = {
        "DAGSTER_DAEMON_LOG_LEVEL": "warning",  # or else three lines a second of what is not due
        **os.environ,
        # Paths that were relative, and values of `.env`, but for the account: a sensor reads that
        # again when it has changed.
        **{name: value for name, value in settings.environment.items() if name not in ACCOUNT},
        "TMPDIR": str(runtime),  # which is removed with what a killed process leaves
    }
    children = Children(settings, environment, part)
    try:
        yield children
    finally:
        interrupts.ignore_further()  # a second Ctrl-C must not leave children
        children.end_all()


def answers(address: str, seconds: float = 2.0) -> bool:
    """Tells whether a web server of our own answers 200 at an address, asked without a proxy."""
    try:
        with _DIRECT.open(address, timeout=seconds) as answer:
            return int(answer.status) == 200
    except OSError:
        return False
