"""Locks between processes. The kernel drops one when its holder dies, however it dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.files import make_private


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

    The file appears with its lock taken: who finds it free knows that its process has ended.
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
    """The lock of those who bring the ZIP of an extract into a directory."""
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
