"""A DuckDB connection with values bound by name and transactions as blocks."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import duckdb

from kbo_pipeline.core.errors import DamagedError, KboError
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.progress import ProgressReport, not_reported
from kbo_pipeline.core.sql import glob_escaped, literal
from kbo_pipeline.core.text import first_line

Result = TypeVar("Result")

_ATTEMPTS = 30
"""Attempts of a writer to be the next to commit, where several write."""

_LONGEST_WAIT = 2.0
"""The longest wait between two attempts, in seconds; random, and longer each time."""

_BESIDE_MB = 460
"""Megabytes that a process needs besides what DuckDB counts: Python, Dagster, fragments."""

_MB_OF_THREAD = 512
"""Megabytes for each thread of DuckDB: it keeps rows of its own, which it cannot spill."""

SPILL_LIMIT = "20GB"
"""The most that DuckDB spills; a hostile extract must not fill the disk."""

_NO_EXTENSIONS = (
    "autoinstall_known_extensions",
    "autoload_known_extensions",
    "allow_community_extensions",
)

STORAGE_VERSION = "v1.4.0"
"""The oldest DuckDB that reads our files. It packs text twice as fast as the format before 1.3."""


def new_file(file: Path) -> str:
    """The options of ATTACH for a file, which is made when it is not there."""
    return "" if file.exists() else f" (STORAGE_VERSION '{STORAGE_VERSION}')"


class Limits(Protocol):
    """Settings that say what DuckDB may take."""

    @property
    def memory_mb(self) -> int:
        """Memory of a process, in MiB."""

    @property
    def temporary_dir(self) -> Path:
        """The directory that it spills to."""


def limits(settings: Limits) -> dict[str, str | int]:
    """The configuration of a DuckDB for heavy work: its memory, its threads, where it spills.

    Args:
        settings: say how much memory there is; the directory to spill to is made.
    """
    memory = min(settings.memory_mb * 3 // 4, settings.memory_mb - _BESIDE_MB)
    make_private(settings.temporary_dir)
    return {
        "memory_limit": f"{memory}MiB",
        "threads": max(1, min(os.cpu_count() or 1, memory // _MB_OF_THREAD)),
        "temp_directory": str(settings.temporary_dir),
        "max_temp_directory_size": SPILL_LIMIT,
    }


def connect(settings: Limits) -> duckdb.DuckDBPyConnection:
    """Opens an in-memory DuckDB for heavy work, within `limits`."""
    return duckdb.connect(":memory:", config=dict(limits(settings)))


def lock_down(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    """Restricts a connection to the files below one directory, before it reads foreign ones.

    No other file, no address, no extension, no change of any setting: whatever a value or a flaw
    in the reader of CSV files might lead to. This is final, for all cursors of its database.
    """
    for name in _NO_EXTENSIONS:
        connection.execute(f"SET {name} = false")
    # As it is and as read_csv takes it: DuckDB compares the text before it looks for files.
    allowed = f"{literal(directory)}, {literal(glob_escaped(directory))}"
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def attach_file(connection: duckdb.DuckDBPyConnection, file: Path, name: str) -> None:
    """Attaches a register at work that is a file, which is made when it is not there.

    Raises:
        DamagedError: it is not what was written.
    """
    try:
        connection.execute(f"ATTACH {literal(file)} AS {name}{new_file(file)}")
    except duckdb.Error as error:
        if not is_damage(error):
            raise
        raise DamagedError(
            f"{file}: damaged ({first_line(error)}); kbo rebuild repairs it"
        ) from None
    # Publishing checkpoints once; by default each batch of a Full would.
    connection.execute("SET wal_autocheckpoint = '4GB'")
    # A join filters the other table by up to this many keys before it is read; with more, the
    # filter takes longer than it saves.
    connection.execute("SET dynamic_or_filter_threshold = 1000")


def detach(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Detaches what was attached under a name."""
    connection.execute("USE memory")
    connection.execute(f"DETACH {name}")


class Database:
    """A connection whose statements take their values as keyword arguments."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, *, write_lock: str | None = None
    ) -> None:
        """Takes a connection, and where several may write, the statement of which one commits."""
        self.connection = connection
        self._write_lock = write_lock
        self._first: Callable[[], None] | None = None

    def before_first_write(self, change: Callable[[], None]) -> None:
        """Lets the next transaction begin with a change, and each one until one has committed."""
        self._first = change

    def execute(self, statement: str, **parameters: Any) -> duckdb.DuckDBPyConnection:
        """Executes a statement; each `$name` in it must have its value."""
        return self.connection.execute(statement, parameters)

    def row(self, statement: str, **parameters: Any) -> tuple[Any, ...] | None:
        """The first row of a query; None when it has none."""
        return self.execute(statement, **parameters).fetchone()

    def count(self, statement: str, **parameters: Any) -> int:
        """The number that a query returns, or that a statement has changed."""
        row = self.row(statement, **parameters)
        return int(row[0]) if row else 0

    def commit(self, change: Callable[[], Result], *, is_locking: bool = True) -> Result:
        """Commits what a function does, or nothing of it, and returns what it returns.

        Where another writer has committed first, it is called again, on what is there then.
        Takes what `transaction` takes.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self.transaction(is_locking=is_locking):
                    return change()
            except duckdb.TransactionException:
                if self._write_lock is None or attempt == _ATTEMPTS:
                    raise
                time.sleep(random.uniform(0, _LONGEST_WAIT * attempt / _ATTEMPTS))
        raise AssertionError("unreachable: the last attempt returns or raises")

    @contextmanager
    def transaction(self, *, is_locking: bool = True) -> Iterator[None]:
        """Commits what the block does, or nothing of it; afterwards no transaction is open.

        Args:
            is_locking: where several may write, of two at a time one commits.
        """
        try:
            self.execute("BEGIN TRANSACTION")
            if is_locking and self._write_lock is not None:
                self.execute(self._write_lock)
            if self._first is not None:
                self._first()
            yield
            self.execute("COMMIT")
            self._first = None
        except BaseException:
            with suppress(duckdb.TransactionException):  # there is none: a commit has worked
                self.execute("ROLLBACK")
            raise


_DAMAGE = (
    "not a valid DuckDB database file",
    "enough bytes",
    "Corrupt database file",
    "Failure while replaying WAL",
)
"""How DuckDB 1.5 reports a file that is not what it wrote."""


def is_damage(error: BaseException) -> bool:
    """Tells whether a file could not be read because of what is in it; another try cannot help."""
    if isinstance(error, duckdb.SerializationException | DamagedError):
        return True
    return isinstance(error, duckdb.Error) and any(text in str(error) for text in _DAMAGE)


def is_transient(error: Exception) -> bool:
    """Tells whether the same call may succeed a moment later: locks, memory, disk, conflicts."""
    if isinstance(error, KboError):
        return error.transient
    if is_damage(error):
        return False
    passing = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException)
    return isinstance(error, (*passing, OSError))


_HEADERS = 3
_HEADER_BYTES = 4096
_BLOCK_BYTES_AT = _HEADER_BYTES + 40
"""Where the second and the third header say how many bytes a block has."""
_READ_BYTES = 8_388_608


def check_blocks(file: Path, report: ProgressReport = not_reported) -> None:
    """Makes sure that a DuckDB file is what DuckDB wrote; no process may be writing it.

    A file of DuckDB 1.x is three headers of 4 KiB and blocks of equal size; each begins with a
    checksum of its rest. DuckDB compares it when it reads a block; all are compared here before a
    file is copied over another one, so that damage is never handed on.

    Raises:
        DamagedError: it is not; names the place.
        OSError: it cannot be read.
    """
    with file.open("rb") as content:
        headers = content.read(_HEADERS * _HEADER_BYTES)
        _check_parts(file, headers, _HEADER_BYTES, 0)
        if len(headers) < _HEADERS * _HEADER_BYTES:
            raise DamagedError(f"{file}: damaged: it ends after {len(headers)} bytes")
        block = int.from_bytes(headers[_BLOCK_BYTES_AT : _BLOCK_BYTES_AT + 8], "little")
        buffer = bytearray(_READ_BYTES // block * block)
        place = len(headers)
        whole = file.stat().st_size
        while length := content.readinto(buffer):
            _check_parts(file, memoryview(buffer)[:length], block, place)
            place += length
            report(min(1.0, place / whole), "comparing the checksums of its blocks")


def _check_parts(file: Path, content: bytes | memoryview, size: int, place: int) -> None:
    """Compares the checksums of parts of equal size; what is left over at the end is no part."""
    import numpy  # which readers do without

    factor, start = numpy.uint64(0xBF58476D1CE4E5B9), numpy.uint64(5381)
    whole = len(content) - len(content) % size
    parts = numpy.frombuffer(content, dtype="<u8", count=whole // 8).reshape(-1, size // 8)
    for number, part in enumerate(parts):
        if numpy.bitwise_xor.reduce(part[1:] * factor) ^ start != part[0]:
            raise DamagedError(
                f"{file}: damaged: the checksum of {size} bytes at {place + number * size} is wrong"
            )
    if whole < len(content):
        raise DamagedError(f"{file}: damaged: it ends within a block, at {place + len(content)}")


def is_duckdb(file: Path) -> bool:
    """Tells whether a file begins as DuckDB's do, damaged or not."""
    with file.open("rb") as content:
        return content.read(12)[8:] == b"DUCK"
