"""What readers open: the published register, also one of an earlier version.

It is a byte-by-byte copy of the register at work when it was published, unless `KBO_PRIVACY` has
changed since: then its views are others.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256

import duckdb

from kbo_pipeline.core.database import Database, detach, is_damage
from kbo_pipeline.core.errors import DamagedError, NotReadyError, RegisterError, StorageError
from kbo_pipeline.core.extracts import PublishedState, read_published_state
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.schema import (
    VERSION_TABLE,
    check_version,
    create,
    has_ledger,
    layout_of,
    show_older,
    version_of,
)
from kbo_pipeline.core.text import first_line
from kbo_pipeline.read import state_sql
from kbo_pipeline.read.state_sql import HIDDEN_BEFORE, SHOWN
from kbo_pipeline.read.views import create_views


@contextmanager
def open_published(
    connection: duckdb.DuckDBPyConnection, database: Place
) -> Iterator[PublishedState]:
    """Attaches what readers open, for reading, as the default database of an in-memory DuckDB.

    It does not change while it is attached: a publication puts another file into its place, or
    makes another snapshot of a lake.

    Yields:
        Its published extracts.

    Raises:
        NotReadyError: there is none.
        RegisterError: it is no register.
        StorageError: another program has it open for writing, or it does not answer.
    """
    name = _attach(connection, database)
    shown = name
    try:
        with _explained(database):
            shown = show_to_reader(connection, name, database)
            state = read_published_state(connection)
        yield state
    finally:
        hide(connection, shown)
        detach(connection, name)


def _attach(connection: duckdb.DuckDBPyConnection, database: Place) -> str:
    try:
        return database.attach_to_read(connection, "published")
    except duckdb.Error as error:
        if isinstance(error, duckdb.IOException) and "lock" in str(error):
            raise StorageError(
                f"{database}: another program has it open for writing; end that, then again"
            ) from None
        raise unreadable(database, error) from None


@contextmanager
def _explained(database: Place) -> Iterator[None]:
    """Turns DuckDB's errors on a place that is no register into errors that name it."""
    try:
        yield
    except (duckdb.CatalogException, duckdb.BinderException):
        raise database.no_register() from None
    except duckdb.IOException as error:
        raise database.unreachable(error) or unreadable(database, error) from None


def unreadable(database: Place, error: Exception) -> RegisterError:
    """The error where a published register cannot be read."""
    reason = f"{database}: {first_line(error)}"
    if is_damage(error):
        return DamagedError(f"{reason}; kbo rebuild repairs it; if it is no register, move it away")
    return RegisterError(f"{reason}; move it away")


def content_hash(connection: duckdb.DuckDBPyConnection) -> str:
    """A hash of all row versions of the register that is the default database, in any order.

    Compare it within one version of DuckDB only.
    """
    rows = connection.execute(f"{state_sql.CONTENT_OF_TABLES} ORDER BY table_name").fetchall()
    return sha256(repr(rows).encode()).hexdigest()


_SHOWN = "shown"
"""The database that shows an older register as a current one."""


def show_to_reader(connection: duckdb.DuckDBPyConnection, name: str, place: Place) -> str:
    """Makes an attached register the default database, as one of the current layout.

    An older one is shown by views in memory, in which what it lacks has no values, or no rows; they
    leave out whom its own views leave out.

    Args:
        connection: an in-memory DuckDB.
        name: what the register is attached as.
        place: where it is.

    Returns:
        The name of the default database; `hide` takes it away.

    Raises:
        RegisterError: the register is of a newer version than this program.
    """
    at_work = place.schema_at_work
    version = version_of(connection, layout_of(connection, name, at_work), f"{name}.{at_work}")
    check_version(version, place)
    layout = layout_of(connection, name, "main")
    today = _todays_layout()
    is_whole = all(columns.keys() <= layout.get(table, {}).keys() for table, columns in today)
    if (is_whole and HIDDEN_BEFORE not in layout) or not has_ledger(layout):
        connection.execute(f"USE {name}")
        return name
    connection.execute(f"ATTACH ':memory:' AS {_SHOWN}")
    try:
        connection.execute(f"USE {_SHOWN}")
        for table, columns in today:
            there = layout.get(table, {}).keys()
            connection.execute(show_older(table, f"{name}.main", columns, there))
        leaves_out = bool({SHOWN, HIDDEN_BEFORE} & layout.keys())
        for statement in create_views("legal-persons" if leaves_out else "full"):
            connection.execute(statement)
    except duckdb.Error:
        hide(connection, _SHOWN)
        raise
    return _SHOWN


def hide(connection: duckdb.DuckDBPyConnection, shown: str) -> None:
    """Removes what `show_to_reader` has made; the register stays attached."""
    connection.execute("USE memory")
    if shown == _SHOWN:
        connection.execute(f"DETACH {_SHOWN}")


@functools.cache
def _todays_layout() -> tuple[tuple[str, Mapping[str, str]], ...]:
    """The columns of the tables of a register of the current layout."""
    with duckdb.connect(":memory:") as connection:
        create(Database(connection), has_keys=False)
        layout = layout_of(connection, "memory", "main")
    return tuple((table, layout[table]) for table in layout if table != VERSION_TABLE)


def published_state_of(
    database: Place, connection: duckdb.DuckDBPyConnection | None = None
) -> PublishedState:
    """The published extracts, read on a connection of its own if none is given.

    Empty if nothing is published, or if another program has the file open for writing: that must
    not stop an import.

    Raises:
        RegisterError: the file is no register.
        StorageError: a shared register does not answer.
    """
    if connection is None:
        with duckdb.connect(":memory:") as own:
            return published_state_of(database, own)
    try:
        with open_published(connection, database) as state:
            return state
    except NotReadyError:
        return PublishedState()
    except StorageError:
        if database.is_shared:
            raise
        return PublishedState()
