"""What one thread asks of a register, so that another thread can stop it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import duckdb


class Question:
    """All that one thread asks of DuckDB in a block; another thread may stop it."""

    _of_thread = threading.local()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: list[duckdb.DuckDBPyConnection] = []
        self.is_stopped = False

    @contextmanager
    def asked(self) -> Iterator[None]:
        """What this thread asks in the block belongs to the question."""
        Question._of_thread.current = self
        try:
            yield
        finally:
            Question._of_thread.current = None
            with self._lock:
                self._connections.clear()

    def stop(self) -> None:
        """Interrupts what is asked now, and lets nothing more be asked.

        Call it until the block has ended: between two statements there is nothing to interrupt.
        """
        with self._lock:
            self.is_stopped = True
            for connection in self._connections:
                with suppress(duckdb.ConnectionException):  # it is closed
                    connection.interrupt()

    def _add(self, connection: duckdb.DuckDBPyConnection) -> None:
        with self._lock:
            if self.is_stopped:
                raise duckdb.InterruptException("stopped")
            self._connections.append(connection)

    def _remove(self, connection: duckdb.DuckDBPyConnection) -> None:
        with self._lock:
            self._connections = [c for c in self._connections if c is not connection]


def check() -> None:
    """Makes sure that this thread may go on, between two parts of what it asks.

    Raises:
        duckdb.InterruptException: the question is stopped.
    """
    question: Question | None = getattr(Question._of_thread, "current", None)
    if question is not None and question.is_stopped:
        raise duckdb.InterruptException("stopped")


def begin(connection: duckdb.DuckDBPyConnection) -> None:
    """Says that this thread asks on a connection; nothing where it asks no `Question`.

    Raises:
        duckdb.InterruptException: the question is stopped.
    """
    question: Question | None = getattr(Question._of_thread, "current", None)
    if question is not None:
        question._add(connection)


def end(connection: duckdb.DuckDBPyConnection) -> None:
    """Says that a connection is about to be closed, which must not be interrupted."""
    question: Question | None = getattr(Question._of_thread, "current", None)
    if question is not None:
        question._remove(connection)
