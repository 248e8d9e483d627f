"""How much of a piece of work is done, reported while it goes on.

The worker takes a `ProgressReport` and calls it as often as it likes; the listener decides how
often that is worth a write.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

ProgressReport = Callable[[float, str], None]
"""Takes the share that is done, 0 to 1, and in words what is being done."""

_POLL_SECONDS = 0.5

_SHOW_NO_BAR = ("SET enable_progress_bar = true", "SET enable_progress_bar_print = false")


def not_reported(share: float, words: str) -> None:
    """A report to nobody."""


def part_of(report: ProgressReport, start: float, end: float) -> ProgressReport:
    """A report for a part of the work: from one share of the whole to another."""
    if report is not_reported:
        return report
    return lambda share, words: report(start + (end - start) * share, words)


def steps_of(report: ProgressReport, sizes: Sequence[float]) -> Iterator[ProgressReport]:
    """A report for each step of the work, one after the other.

    Args:
        report: on the whole.
        sizes: of the steps, in any unit.
    """
    whole, done = sum(sizes) or 1.0, 0.0
    for size in sizes:
        yield part_of(report, done / whole, (done + size) / whole)
        done += size


def count_statements(connection: "duckdb.DuckDBPyConnection") -> None:
    """Lets DuckDB note how far a statement is, for `watched`; before its settings are locked."""
    for statement in _SHOW_NO_BAR:
        connection.execute(statement)


@contextmanager
def watched(
    connection: "duckdb.DuckDBPyConnection", report: ProgressReport, words: str
) -> Iterator[None]:
    """Reports how far the statement in the block is, as DuckDB estimates it.

    `count_statements` has to be called before.
    """

    def share() -> float:
        return connection.query_progress() / 100  # -1 where it does not know

    with _polled(share, report, words):
        yield


@contextmanager
def growing(file: Path, length: int, report: ProgressReport, words: str) -> Iterator[None]:
    """Reports how much of a file of so many bytes the block has written."""

    def share() -> float:
        return file.stat().st_size / length if file.exists() and length else 0.0

    with _polled(share, report, words):
        yield


@contextmanager
def _polled(share: Callable[[], float], report: ProgressReport, words: str) -> Iterator[None]:
    """Reports a share that somebody else knows, twice a second until the block ends."""
    if report is not_reported:
        yield
        return

    def poll(ended: threading.Event) -> None:
        while not ended.wait(_POLL_SECONDS):
            if 0 <= (now := share()) <= 1:
                report(now, words)

    report(0.0, words)
    with beside(poll):
        yield
    report(1.0, words)


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs work in a thread beside the block; the event tells it to end."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
