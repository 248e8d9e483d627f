"""Files that are complete or absent, whatever dies meanwhile; private directories; locks.

The kernel drops a lock when its holder dies, however it dies.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kbo_pipeline.core.errors import StorageError


def make_private(directory: Path) -> None:
    """Makes a directory, and those above it that are missing, with mode 0700.

    Directories that exist keep their mode: somebody chose it.

    Raises:
        OSError: it cannot be made, or something else lies there.
    """
    for missing in reversed(
        [path for path in (directory, *directory.parents) if not path.exists()]
    ):
        with suppress(FileExistsError):  # another process was faster
            missing.mkdir(mode=0o700)
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))


@contextmanager
def replace_atomically(target: Path) -> Iterator[Path]:
    """Yields a temporary name beside `target`; what was written there replaces it at the end.

    The file and its folder are on disk before this returns. After an error nothing has changed.
    A folder that is missing is made for its owner alone.
    One process at a time may do this for a target: callers hold a lock.
    """
    make_private(target.parent)
    temporary = target.with_name(f"{target.name}.part")
    leftovers = (temporary, _log(temporary))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    try:
        yield temporary
        move_into_place(temporary, target)
    finally:
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)


@contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """Yields a new directory beside `target`; what was written there takes its place at the end.

    Its files and folders are on disk before this returns. After an error nothing has changed. A
    process killed in the instant between the two renames leaves none under the name; the next call
    puts the old one back before anything else.
    One process at a time may do this for a target: callers hold a lock.
    """
    make_private(target.parent)
    new = target.with_name(f".{target.name}.unfinished")
    old = _replaced(target)
    put_back(target)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(mode=0o700)
    try:
        yield new
        for path in (*new.iterdir(), new):
            _sync(path)
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
        _sync(target.parent)
    finally:
        put_back(target)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def put_back(target: Path) -> None:
    """Puts back the old directory that a killed `replace_directory` has left under another name."""
    old = _replaced(target)
    if old.exists() and not target.exists():
        os.rename(old, target)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def link_or_copy(file: Path, target: Path) -> None:
    """Gives a file a second name, which stays when the first gets another file."""
    try:
        os.link(file, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(file, target)


def _log(file: Path) -> Path:
    """Where DuckDB keeps the write-ahead log of a file."""
    return file.with_name(f"{file.name}.wal")


def move_into_place(file: Path, target: Path) -> None:
    """Renames `file` to `target`, replacing it; file and folder are on disk before this returns."""
    _sync(file)
    _log(target).unlink(missing_ok=True)  # else DuckDB would replay it into the new file
    os.replace(file, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(file: Path, timeout: float = 0.0) -> Iterator[None]:
    """Holds the lock that `file` stands for; waits `timeout` seconds for another holder.

    The file is made when it is not there, and never removed. Its text is the holder's process id.

    Raises:
        StorageError: another process holds the lock; names its process id.
    """
    make_private(file.parent)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _wait_for(descriptor, file, timeout)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Tells whether some process holds the lock that `file` stands for; a directory may, too."""
    try:
        access = os.O_RDONLY if file.is_dir() else os.O_RDWR
        descriptor = os.open(file, access | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def hold_until_exit(file: Path) -> None:
    """Takes the lock that `file` stands for, which nobody has taken before, for good.

    The file appears with its lock taken: once it is free, its process has ended.
    """
    make_private(file.parent)
    unfinished = file.with_suffix(f".{os.getpid()}")
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o600)  # closed by the kernel
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    os.rename(unfinished, file)


def holder(file: Path) -> int | None:
    """The process id of who holds the lock that `file` stands for; None when nobody does."""
    if not is_locked(file):
        return None
    text = file.read_text()
    return int(text) if text.isdigit() else None


def zip_lock(directory: Path, extract: object) -> Path:
    """The lock of processes that bring the ZIP of an extract into a directory."""
    return directory / f".{extract}.lock"


def _wait_for(descriptor: int, file: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 20, 0).decode() or "unknown"
                raise StorageError(
                    f"{file}: process {holder} is at work here; wait for it or stop it"
                ) from None
            time.sleep(0.05)
