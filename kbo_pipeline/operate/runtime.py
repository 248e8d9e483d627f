"""Where `kbo start` and its parts listen: addresses, and the directory with the sockets.

    WORK/identity     who this data directory is, and was: a copy, or one that has moved, is another
    RUNTIME           below the work directory, or where the path of a socket is short enough; its
                      lock says that it is in use
    RUNTIME/code.sock, listener-...   sockets of the code server
    RUNTIME/workspace.yaml            for daemon and web server
    RUNTIME/daemon.beat               its time changes as long as the daemon is alive

No Dagster.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from kbo_pipeline.core.errors import SettingsError, StorageError
from kbo_pipeline.core.files import exclusive_lock, is_locked, make_private, replace_atomically
from kbo_pipeline.core.settings import Settings

_SOCKET_PATH_BYTES = 103  # macOS; Linux has 107
_LONGEST_NAME = "listener-12345678"  # the socket of Python's fork server
_RANDOM = "12345678"  # what mkdtemp adds to a prefix

Part = Literal["code", "daemon", "web"]
"""What of `kbo start` can run alone."""

CHILDREN: dict[Part | None, tuple[str, ...]] = {
    None: ("code", "daemon", "webserver"),
    "code": ("code",),
    "daemon": ("daemon",),
    "web": ("webserver",),
}
"""The processes that are started for a part, or for all of it, in this order."""

_ANY_ADDRESS = "0.0.0.0"


def suffix(part: Part | None) -> str:
    """The end of names of what each part has for itself; parts may share a data directory."""
    return "" if part in (None, "code") else f"-{part}"


def check_part(settings: Settings, part: Part | None) -> None:
    """Checks that a part can run with these settings, or all of it.

    Raises:
        SettingsError: it cannot; names the setting.
    """
    if part is None and settings.code_host is not None:
        raise SettingsError(
            "KBO_CODE_HOST: is for processes on several hosts; unset it, or say which part is to"
            " run here: kbo start --only code, daemon or web"
        )
    if part is not None and settings.code_host is None:
        raise SettingsError(
            f"KBO_CODE_HOST: not set; kbo start --only {part} needs the address of the code"
            " location's host"
        )
    if part is not None and settings.postgres_url is None:
        raise SettingsError(
            f"DAGSTER_POSTGRES_URL: not set; kbo start --only {part} needs a PostgreSQL that all"
            " hosts reach, the embedded one is for one machine"
        )


def reached(host: str) -> str:
    """The address at which this machine reaches what listens on `host` here."""
    return "127.0.0.1" if host == _ANY_ADDRESS else host


def ui_address(settings: Settings) -> str:
    """The address at which this machine reaches its web UI."""
    return f"http://{reached(settings.ui_host)}:{settings.ui_port}"


def is_open(host: str, port: int) -> bool:
    """Tells whether a process listens on a TCP port."""
    try:
        with socket.create_connection((reached(host), port), timeout=2):
            return True
    except OSError:
        return False


def check_port(setting: str, host: str, port: int) -> None:
    """Checks that a port of this machine is free.

    Raises:
        SettingsError: it is not, or the host is not this machine; names the setting.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror:
            reason = f"there is no host {host}; name an address of this machine"
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = f"port {port} is taken; stop what uses it or set another"
            else:
                reason = f"cannot listen on {host}:{port}: {error.strerror}"
        else:
            return
    raise SettingsError(f"{setting}: {reason}")


class Runtime:
    """A runtime directory in use.

    Attributes:
        path: where it is.
        code_socket: where the code server listens.
        workspace: the file that names it.
        beat: what the daemon touches.
    """

    def __init__(self, path: Path, workspace: str) -> None:
        """Takes a directory into use.

        Args:
            path: the directory, which is there.
            workspace: the text of the workspace file.
        """
        self.path = path
        self.code_socket = path / "code.sock"
        self.workspace = path / "workspace.yaml"
        self.beat = path / "daemon.beat"
        self._workspace_text = workspace
        self._sockets: set[Path] = set()
        self._lock: int | None = None
        self.restore()

    def restore(self) -> None:
        """Makes the directory and the workspace file where they are not there."""
        make_private(self.path)
        if self._lock is None or not _is_same(self._lock, self.path):
            self.release()
            self._lock = os.open(self.path, os.O_RDONLY)
            # Cleaners of temporary directories, such as systemd's, spare one that is locked.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not self.workspace.exists():
            with replace_atomically(self.workspace) as unfinished:
                unfinished.write_text(self._workspace_text)

    def note_sockets(self) -> None:
        """Remembers, once, which sockets the code server has now that it is there."""
        if not self._sockets:
            self._sockets = {path for path in self.path.iterdir() if path.is_socket()}

    def drop_sockets(self) -> None:
        """Removes the sockets of a code server that has ended."""
        self._sockets = set()
        if self.path.is_dir():
            for path in self.path.iterdir():
                if path.is_socket():
                    path.unlink(missing_ok=True)

    def lost(self) -> list[Path]:
        """What has disappeared without our doing, as when temporary files are cleaned up."""
        if self._lock is None or not _is_same(self._lock, self.path):
            return [self.path, *self._sockets]
        return [path for path in (self.workspace, *sorted(self._sockets)) if not path.exists()]

    def has_lost_sockets(self) -> bool:
        """Whether the code server cannot be reached any more, or cannot fork workers."""
        return any(path in self._sockets for path in self.lost())

    def release(self) -> None:
        """Drops the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def runtime_directory(settings: Settings, part: Part | None, workspace: str) -> Iterator[Runtime]:
    """Makes the runtime directory of a part, and removes it with what ended ones have left.

    Args:
        settings: say where the work directory is.
        part: of `kbo start`; only one process runs it on this data directory.
        workspace: the text of the workspace file; `SOCKET` in it is the code server's socket.

    Raises:
        StorageError: no directory will do.
    """
    drop_leftovers(settings, part)
    path = _make(settings, part)
    runtime = Runtime(path, workspace.replace("SOCKET", str(path / "code.sock")))
    try:
        yield runtime
    finally:
        runtime.release()
        shutil.rmtree(path, ignore_errors=True)  # it may be gone already


def drop_leftovers(settings: Settings, part: Part | None) -> None:
    """Removes runtime directories that a killed `kbo start` has left; never one that is in use.

    In the work directory also those that were copied there with it.
    """
    directories = list(settings.work_dir.glob(f"kbo{suffix(part)}-*-*"))
    prefix = runtime_prefix(settings, part)
    for parent in _parents(settings)[1:]:
        directories += parent.glob(f"{prefix}*")
    for path in directories:
        with suppress(OSError):  # another's, or gone
            if path.lstat().st_uid == os.geteuid() and path.is_dir() and not is_locked(path):
                shutil.rmtree(path)


def runtime_prefix(settings: Settings, part: Part | None = None) -> str:
    """How the names of the runtime directories of this data directory begin."""
    return f"kbo{suffix(part)}-{_identity(settings)}-"


def is_ours(settings: Settings, code_socket: Path) -> bool:
    """Tells whether a code server with this socket belonged to this data directory.

    Also to what the directory was before it was moved or copied: what ran there does not write
    here.
    """
    prefixes = [f"kbo-{identity}-" for identity, *_ in _identities(settings)]
    return code_socket.parent.name.startswith((runtime_prefix(settings), *prefixes))


def _identity(settings: Settings) -> str:
    """The name of this data directory at this place; a new one where it has none."""
    make_private(settings.work_dir)
    place: list[str | int] = [settings.work_dir.stat().st_ino, str(settings.work_dir.resolve())]
    with exclusive_lock(settings.work_dir / "identity.lock", timeout=10):
        identities = _identities(settings)
        for identity, *where in reversed(identities):
            if where == place:
                return str(identity)
        identities.append([uuid.uuid4().hex[:12], *place])
        with replace_atomically(settings.work_dir / "identity") as unfinished:
            unfinished.write_text("".join(f"{json.dumps(one)}\n" for one in identities))
        return str(identities[-1][0])


def _identities(settings: Settings) -> list[list[str | int]]:
    """Names with the places they belong to, the oldest first; of older versions, without one."""
    try:
        lines = (settings.work_dir / "identity").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) if line.startswith("[") else [line] for line in lines if line]


def _parents(settings: Settings) -> list[Path]:
    """Where a runtime directory may be, starting with places that are not cleaned up."""
    places = (settings.work_dir, tempfile.gettempdir(), "/tmp", "/var/tmp")
    return [Path(place) for place in dict.fromkeys((*map(str, places), f"/run/user/{os.getuid()}"))]


def _make(settings: Settings, part: Part | None) -> Path:
    prefix = runtime_prefix(settings, part)
    for parent in _parents(settings):
        longest = parent / f"{prefix}{_RANDOM}" / _LONGEST_NAME
        if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES:
            continue
        with suppress(OSError):
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            if _takes_sockets(path):
                return path
            path.rmdir()
    raise StorageError(
        f"no directory takes sockets: {', '.join(map(str, _parents(settings)))}; set TMPDIR to one"
        " with a short path on a local disk"
    )


def _takes_sockets(directory: Path) -> bool:
    """Some file systems of containers and networks have no sockets."""
    path = directory / _LONGEST_NAME
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(str(path))
        except OSError:
            return False
    path.unlink()
    return True


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
