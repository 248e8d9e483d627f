"""What readers open: reading it; and of a file: its views, replacing it. No Dagster.

It is the register at work, byte by byte, as that was when it was published; only where
`KBO_PRIVACY` has changed since, its views are made for it alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import duckdb

from kbo_pipeline.core.database import is_damage, literal
from kbo_pipeline.core.errors import DamagedError, NotReadyError, RegisterError, StorageError
from kbo_pipeline.core.lake import NOTHING_PUBLISHED, attach_to_read, detach, files_unreachable
from kbo_pipeline.core.ledger import PublishedState, read_published_state
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.text import first_line
from kbo_pipeline.read import state_sql as reading_sql
from kbo_pipeline.read.older import hide, show_to_reader


@contextmanager
def open_published(
    connection: duckdb.DuckDBPyConnection, database: Place
) -> Iterator[PublishedState]:
    """Attaches what readers open as `published`, for reading; it is the default database.

    It stays what it is while it is attached: a publication puts another file into its place, or
    makes another snapshot of a lake.

    Args:
        connection: an in-memory DuckDB.
        database: where it is.

    Yields:
        What it says of its extracts.

    Raises:
        NotReadyError: there is none.
        RegisterError: it is no register.
        StorageError: somebody has it open for writing, or it does not answer.
    """
    if isinstance(database, Path):
        _attach_file(connection, database)
        name = "published"
    else:
        name = attach_to_read(connection, database, "published")
    shown = name
    try:
        with _explained(database):
            shown = show_to_reader(connection, name, database)
            standing = read_published_state(connection)
        yield standing
    finally:
        hide(connection, shown)
        detach(connection, name)


def _attach_file(connection: duckdb.DuckDBPyConnection, database: Path) -> None:
    if not database.exists():
        raise NotReadyError(f"{database}: {NOTHING_PUBLISHED}")
    if not database.is_file():
        raise RegisterError(f"{database}: no file; move it away")
    try:  # without its type, DuckDB would fetch an extension for a file of another database
        connection.execute(f"ATTACH {literal(database)} AS published (READ_ONLY, TYPE duckdb)")
    except duckdb.Error as error:
        if isinstance(error, duckdb.IOException) and "lock" in str(error):
            raise StorageError(
                f"{database}: another program has it open for writing; end that, then again"
            ) from None
        raise _unreadable(database, error) from None


@contextmanager
def _explained(database: Place) -> Iterator[None]:
    """Turns what DuckDB says of a place that is no register into errors that name it."""
    try:
        yield
    except (duckdb.CatalogException, duckdb.BinderException):
        if not isinstance(database, Path):  # the first import is on its way
            raise NotReadyError(f"{database}: {NOTHING_PUBLISHED}") from None
        raise RegisterError(
            f"{database}: a DuckDB file, but no register of this pipeline; move it away"
        ) from None
    except duckdb.IOException as error:
        if not isinstance(database, Path):
            raise files_unreachable(database, error) from None
        raise _unreadable(database, error) from None


def _unreadable(database: Place, error: Exception) -> RegisterError:
    said = f"{database}: {first_line(error)}"
    if is_damage(error):
        return DamagedError(f"{said}; kbo rebuild mends it; if it is no register, move it away")
    return RegisterError(f"{said}; move it away")


def content_hash(connection: duckdb.DuckDBPyConnection) -> str:
    """A hash of all row versions of all tables of the register that is the default database.

    It does not depend on the order of rows in the file; compare it within one version of DuckDB.
    """
    rows = connection.execute(f"{reading_sql.CONTENT_OF_TABLES} ORDER BY table_name").fetchall()
    return sha256(repr(rows).encode()).hexdigest()
