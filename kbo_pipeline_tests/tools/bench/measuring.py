"""One command, measured: time, CPU, memory of its largest process, bytes written."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_BLOCK = 512  # bytes; in these, Linux counts what processes write
_LINES_TOLD = 20
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a command took.

    Attributes:
        seconds: from its start to its end, or until readers have what it makes, where that is
            looked for.
        cpu: seconds of CPU, its children included.
        peak: bytes of memory, of its largest process.
        written: bytes that it sent to disk, its children included.
        whole: seconds from its start to its end.
    """

    seconds: float
    cpu: float = 0.0
    peak: int = 0
    written: int = 0
    whole: float = 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Some measurements of the same thing."""

    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median."""
        return median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{self.middle:.1f}" if low == high else f"{self.middle:.1f} ({low:.1f}-{high:.1f})"


def measure(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    directory: Path,
    made: Path | None = None,
) -> Measurement:
    """Runs a command to its end.

    Args:
        command: program and arguments.
        environment: all of its environment.
        directory: where it runs; its output goes there, into `output.log`.
        made: the file that readers open, which it is to put in place or to replace.

    Raises:
        RuntimeError: it failed, with the end of its output; or it has not made that file.
    """
    log = directory / "output.log"
    with log.open("wb") as out, _moment_of(made) as moments:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)),
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        told = "\n".join(log.read_text(errors="replace").splitlines()[-_LINES_TOLD:])
        what = " ".join(map(str, command))
        raise RuntimeError(f"{what}: ended with {process.returncode}\n{told}")
    if made is not None and not moments:
        raise RuntimeError(f"{made}: is what it was before")
    return Measurement(
        moments[0] - started if moments else seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        usage.ru_oublock * _BLOCK,
        seconds,
    )


@contextmanager
def _moment_of(made: Path | None) -> Iterator[list[float]]:
    """Notes when a file is put in place or replaced while the block runs."""
    moments: list[float] = []
    if made is None:
        yield moments
        return
    before, is_over = inode(made), threading.Event()

    def look() -> None:
        while not moments:
            is_last = is_over.wait(_LOOK_SECONDS)
            if inode(made) != before:
                moments.append(time.perf_counter())
            elif is_last:
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield moments
    finally:
        is_over.set()
        thread.join()


def inode(file: Path) -> int | None:
    """Which file stands under a name now; another one when it is replaced."""
    return file.stat().st_ino if file.exists() else None
