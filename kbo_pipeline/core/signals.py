"""Ctrl-C, SIGTERM and their like, for commands that run Dagster's jobs in their own process.

Dagster puts its own handlers in place while a job runs, and forgets a signal that comes between two
of its steps. The kernel notes each signal in a pipe here, whoever handles it.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PATIENCE = 15.0
"""Seconds that a batch may go on when it is to stop; then its transaction is rolled back."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Those that ask a process to end: Ctrl-C, `kill`, a terminal that is closed, Ctrl-\\."""

_pipe: int | None = None
_came = False


def listen() -> None:
    """Lets SIGTERM, SIGHUP and SIGQUIT do what Ctrl-C does; for the main thread.

    Also in a shell's background, where Ctrl-C is ignored. A process that ignores the end of the
    terminal, as below `nohup`, goes on ignoring it.
    """
    global _pipe
    sys.unraisablehook = _report_unless_stopped
    if _pipe is None:
        _pipe, written = os.pipe()
        os.set_blocking(_pipe, False)
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for number in stopping():
        # Dagster has handlers for the first two while a job runs: the others become one of them.
        is_dagsters = number in (signal.SIGINT, signal.SIGTERM)
        signal.signal(number, signal.default_int_handler if is_dagsters else _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)


def stopping() -> list[signal.Signals]:
    """The signals that ask this process to end in good order."""
    return [
        number
        for number in SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]


def received() -> bool:
    """Tells whether a signal has come since `listen`, whatever became of it."""
    global _came
    with suppress(BlockingIOError):
        _came = _came or (_pipe is not None and bool(set(os.read(_pipe, 1024)) & set(SIGNALS)))
    return _came


def _report_unless_stopped(unraisable: "sys.UnraisableHookArgs") -> None:
    """Does what Python does with what is raised in a destructor, but for what a signal raises.

    That it came is noted; a traceback among the lines of a command that is stopped says nothing.
    """
    if isinstance(unraisable.exc_value, Exception) or not received():
        sys.__unraisablehook__(unraisable)


@contextmanager
def postponed(seconds: float = PATIENCE) -> Iterator[Callable[[], bool]]:
    """Lets the block come to its end before Ctrl-C or its like ends it, if it takes no longer.

    Yields a function that tells whether a signal has come; the caller ends then, after the block.
    A second signal, or the first after so many seconds, does at once what it did before.

    Args:
        seconds: how long the block may go on after the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False
    numbers = stopping()
    before = {number: signal.getsignal(number) for number in (*numbers, signal.SIGALRM)}

    def act(number: int, frame: FrameType | None) -> None:
        handler = before[signal.SIGINT]
        if callable(handler):
            handler(number, frame)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came or seconds <= 0:
            act(number, frame)
        came = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    signal.signal(signal.SIGALRM, act)
    for number in numbers:
        signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_further() -> None:
    """From here on the process ends in good order; another Ctrl-C would only disturb it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
