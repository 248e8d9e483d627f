"""The published register as a server has it open: one for each published file, for all threads.

Another file is taken over when it is there; what is asked meanwhile is answered from the one that
it began with, which is closed after the last answer.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import duckdb

from kbo_pipeline.core.errors import KboError, NotReadyError
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import literal
from kbo_pipeline.read.register import (
    Publication,
    PublishedRegister,
    open_as_set,
    unreadable,
)
from kbo_pipeline.read.web.models import Source

LOOK_SECONDS = 0.5
"""How often the published file is looked at, at most: once in this time, when somebody asks."""

SHARED_LOOK_SECONDS = 10.0
"""The same for a DuckLake or MotherDuck, which has to be opened anew to see what is published."""

_KEPT_ANSWERS = 1000
_LONGEST_KEPT = 64_000  # bytes of an answer


@dataclass(eq=False)
class Opened:
    """One publication, open for reading.

    Attributes:
        register: of that publication.
        publication: what it is.
        source: what each answer says of it.
    """

    register: PublishedRegister
    publication: Publication
    source: Source
    _answers: OrderedDict[Hashable, bytes] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _users: int = 0
    _is_replaced: bool = False

    @classmethod
    def open(cls, settings: Settings, threads: int | None = None) -> "Opened":
        """Opens what is published now.

        Args:
            settings: say where it is, whom it may show, and how much memory there is.
            threads: of DuckDB, for all questions; None for as many as there are processors.

        Raises:
            KboError: as `read_register`.
        """
        register = open_as_set(settings)
        try:
            # Nothing is written for a question, and it must not take what an import needs.
            register.connection.execute("SET temp_directory = ''")
            memory = literal(f"{settings.memory_mb}MiB")
            register.connection.execute(f"SET memory_limit = {memory}")
            if threads is not None:
                register.connection.execute(f"SET threads = {threads:d}")
            publication = register.publication
        except duckdb.InterruptException:  # who asked has gone; the next one opens it
            register.close()
            raise
        except duckdb.Error as error:
            register.close()
            raise unreadable(register.place, error) from None
        return cls(register, publication, Source.of(register, publication))

    def kept(self, question: Hashable) -> bytes | None:
        """The answer to a question that was asked before, if it is still here."""
        with self._lock:
            answer = self._answers.get(question)
            if answer is not None:
                self._answers.move_to_end(question)
            return answer

    def keep(self, question: Hashable, answer: bytes) -> None:
        """Keeps an answer for who asks the same, unless it is long."""
        if len(answer) > _LONGEST_KEPT:
            return
        with self._lock:
            self._answers[question] = answer
            if len(self._answers) > _KEPT_ANSWERS:
                self._answers.popitem(last=False)

    def enter(self) -> None:
        """Somebody begins to read."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Somebody is done; the last one closes what was replaced."""
        with self._lock:
            self._users -= 1
            is_over = self._is_replaced and self._users == 0
        if is_over:
            self.register.close()

    def replace(self) -> None:
        """Nobody else begins to read."""
        with self._lock:
            self._is_replaced = True
            is_over = self._users == 0
        if is_over:
            self.register.close()


class Served:
    """The newest publication, for any number of threads."""

    def __init__(self, settings: Settings, threads: int | None = None) -> None:
        """Takes what `Opened.open` does; opens nothing yet."""
        self._settings, self._threads = settings, threads
        self._lock = threading.Lock()
        self._opened: Opened | None = None
        self._error: KboError | None = None
        self._file: object = None
        self._look_at = 0.0

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """The newest publication; it stays open until the block ends.

        Raises:
            NotReadyError: nothing is published, or it cannot be read, or it may not be shown.
        """
        with self._lock:
            if time.monotonic() >= self._look_at:
                self._look()
            if self._opened is None:
                raise NotReadyError(str(self._error))
            opened = self._opened
            opened.enter()
        try:
            yield opened
        finally:
            opened.leave()

    def close(self) -> None:
        """Closes it, after the last answer."""
        with self._lock:
            self._take(None)
            self._look_at = 0.0

    def _look(self) -> None:
        """Takes over what is published now, if that is something else."""
        place = self._settings.database
        if place.file is None:
            self._open()
            self._look_at = time.monotonic() + SHARED_LOOK_SECONDS
            return
        try:
            found = place.file.stat()
            file = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            file = None  # why, is said by opening it
        if file is None or file != self._file or self._opened is None:
            self._open()
            self._file = file
        self._look_at = time.monotonic() + LOOK_SECONDS

    def _open(self) -> None:
        try:
            opened = Opened.open(self._settings, self._threads)
        except KboError as error:
            self._error = error
            self._take(None)
            return
        if self._opened is not None and opened.publication == self._opened.publication:
            opened.register.close()
        else:
            self._take(opened)

    def _take(self, opened: Opened | None) -> None:
        before, self._opened = self._opened, opened
        if before is not None:
            before.replace()
