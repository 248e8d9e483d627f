"""Ctrl-C and SIGTERM, for the commands that run Dagster's jobs in their own process. No Dagster.

Dagster puts its own handlers in place while a job runs, and forgets a signal that comes between two
of its steps. The kernel notes each signal in a pipe here, whoever handles it.
"""

import os
import signal
from contextlib import suppress

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_pipe: int | None = None
_came = False


def listen() -> None:
    """Lets SIGTERM do what Ctrl-C does, also in a shell's background; for the main thread."""
    global _pipe
    if _pipe is None:
        _pipe, written = os.pipe()
        os.set_blocking(_pipe, False)
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler)


def received() -> bool:
    """Tells whether a signal has come since `listen`, whatever became of it."""
    global _came
    with suppress(BlockingIOError):
        _came = _came or (_pipe is not None and bool(set(os.read(_pipe, 1024)) & set(_SIGNALS)))
    return _came


def ignore_further() -> None:
    """From here on the process ends in good order; another Ctrl-C would only disturb it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
