"""One command, measured: time, CPU, memory of its largest process, bytes written."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_BLOCK = 512  # bytes; in these, Linux counts what processes write
_LINES_TOLD = 20


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a command took.

    Attributes:
        seconds: from its start to its end.
        cpu: seconds of CPU, its children included.
        peak: bytes of memory, of its largest process.
        written: bytes that it sent to disk, its children included.
    """

    seconds: float
    cpu: float = 0.0
    peak: int = 0
    written: int = 0


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
    command: Sequence[str | Path], environment: Mapping[str, str], directory: Path
) -> Measurement:
    """Runs a command to its end.

    Args:
        command: program and arguments.
        environment: all of its environment.
        directory: where it runs; its output goes there, into `output.log`.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    log = directory / "output.log"
    with log.open("wb") as out:
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
    return Measurement(
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        usage.ru_oublock * _BLOCK,
    )
