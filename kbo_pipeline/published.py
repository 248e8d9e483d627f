"""What readers open: reading it; and of a file: its views, replacing it. No Dagster.

It is the register at work, byte by byte, as that was when it was published; only where
`KBO_PRIVACY` has changed since, its views are made for it alone.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from kbo_pipeline.core.checksums import check_blocks
from kbo_pipeline.core.database import Database, is_damage
from kbo_pipeline.core.disk_space import check_room_to_keep
from kbo_pipeline.core.errors import DamagedError, NotReadyError, RegisterError, StorageError
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.lake import NOTHING_PUBLISHED, attach_to_read, detach, files_unreachable
from kbo_pipeline.core.ledger import Standing, read_standing
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.schema import check, migrate
from kbo_pipeline.core.settings import Privacy
from kbo_pipeline.core.sql import literal
from kbo_pipeline.read.older import hide, show_to_reader
from kbo_pipeline.sql.views import READ_MARK, create_views, mark


@contextmanager
def open_published(connection: duckdb.DuckDBPyConnection, database: Place) -> Iterator[Standing]:
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
            standing = read_standing(connection)
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


def show_to_readers(file: Path, database: Path, privacy: Privacy) -> None:
    """Puts a copy of a register into its place for readers, with the views that it should have.

    Args:
        file: the register at work, which must be detached; or `database` itself.
        database: the file that readers open.
        privacy: who is in its views.

    Raises:
        DamagedError: the register is not what was written; readers keep what they have.
    """
    check_blocks(file)
    with replace_atomically(database) as temporary:
        shutil.copyfile(file, temporary)
        if has_views(temporary, privacy):
            return
        with duckdb.connect(str(temporary)) as connection:
            check(connection, database)
            opened = Database(connection)
            with opened.transaction():
                migrate(opened)
                for statement in create_views(privacy):
                    opened.execute(statement)
            connection.execute("CHECKPOINT")


def has_views(database: Path, privacy: Privacy) -> bool:
    """Tells whether the views of a published file are those that would be made for it now.

    Raises:
        RegisterError: the file is no register, or somebody has it open for writing.
    """
    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            return connection.execute(READ_MARK).fetchall() == [(mark(privacy),)]
    except duckdb.Error as error:
        raise _unreadable(database, error) from None


def renew_views(database: Path, privacy: Privacy) -> bool:
    """Makes the views of the published file anew, where they are not those that it should have.

    They may be of another version, or made with another `KBO_PRIVACY`. The caller holds the lock of
    the register at work.

    Returns:
        False when nothing had to be done.

    Raises:
        RegisterError: the file is no register, or somebody has it open for writing.
        StorageError: there is no room for a second copy.
    """
    if not database.exists() or has_views(database, privacy):
        return False
    check_room_to_keep("views", database.parent, database.stat().st_size)
    show_to_readers(database, database, privacy)
    return True


def _unreadable(database: Place, error: Exception) -> RegisterError:
    said = f"{database}: {_first_line(error)}"
    if is_damage(error):
        return DamagedError(f"{said}; kbo rebuild mends it; if it is no register, move it away")
    return RegisterError(f"{said}; move it away")


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
