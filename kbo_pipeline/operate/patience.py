"""How long PostgreSQL may be silent before a connection with it is given up. No Dagster.

libpq waits for ever for a server that takes a connection and then says nothing: its process is
stopped, or its machine is gone. psycopg2 lets us wait in its place, with a limit.
"""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2 import extensions

OF_COMMANDS = 10.0
"""Seconds for what a person waits for."""

OF_WORK = 60.0
"""Seconds for what goes on by itself, and for runs: the server may be busy."""

_PING_SECONDS = 5.0

_seconds: float | None = OF_WORK


class SilentError(psycopg2.OperationalError):
    """PostgreSQL has not answered in time; the connection is closed."""


def set_patience(seconds: float) -> None:
    """Says how long this process waits for an answer, from now on."""
    global _seconds
    _seconds = seconds


@contextmanager
def patience(seconds: float | None) -> Iterator[None]:
    """Waits so long within the block; None is for ever."""
    global _seconds
    before, _seconds = _seconds, seconds
    try:
        yield
    finally:
        _seconds = before


def limit_silence() -> None:
    """Lets this process give up connections with PostgreSQL on which nothing comes for too long."""
    extensions.set_wait_callback(_wait)


def answers(url: str) -> bool:
    """Tells whether a server answers within seconds; also where a lock is not free.

    Args:
        url: its address, for SQLAlchemy or for libpq.
    """
    limit_silence()
    with patience(_PING_SECONDS):
        try:
            connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
            connection.cursor().execute("SELECT 1")
            connection.close()
        except psycopg2.OperationalError:
            return False
    return True


def _wait(connection: Any) -> None:
    """Waits until psycopg2 has its answer; it closes the connection when this raises.

    Raises:
        SilentError: the server is silent.
    """
    while (state := connection.poll()) != extensions.POLL_OK:
        awaited = select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
        poller = select.poll()
        poller.register(connection.fileno(), awaited)
        if not poller.poll(None if _seconds is None else _seconds * 1000):
            raise SilentError(f"no answer in {_seconds:.0f} s")
