"""The views of a register: made with each publication, compared, recreated.

They may come from another version, or another `KBO_PRIVACY`. A published file gets those that it
should have as it is copied; a shared register has them in `main`, above its views of the schema
`work`.
"""

import shutil
from pathlib import Path

import duckdb

from kbo_pipeline.apply import sql as register_sql
from kbo_pipeline.apply.register import Register
from kbo_pipeline.core.database import Database, check_blocks
from kbo_pipeline.core.disk_space import check_space_to_keep
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.schema import check, migrate
from kbo_pipeline.core.shares import ShareReport, growing, not_reported, part_of
from kbo_pipeline.core.tables import Privacy
from kbo_pipeline.read.published import unreadable
from kbo_pipeline.read.state_sql import fill_shown
from kbo_pipeline.read.views import READ_MARK, create_views, mark


def show_to_readers(
    file: Path, database: Path, privacy: Privacy, report: ShareReport = not_reported
) -> None:
    """Puts a copy of a register where readers open it, with the views that it should have.

    Args:
        file: the register at work, which must be detached; or `database` itself.
        database: the file that readers open.
        privacy: who is in its views.
        report: takes how much is done.

    Raises:
        DamagedError: the register is not what was written; readers keep what they have.
    """
    length = file.stat().st_size
    check_blocks(file, part_of(report, 0, 0.5))
    with replace_atomically(database) as temporary:
        with growing(temporary, length, part_of(report, 0.5, 1), "copying it for readers"):
            shutil.copyfile(file, temporary)
        if has_views(temporary, privacy):
            return
        with duckdb.connect(str(temporary)) as connection:
            check(connection, DuckDBFile(database))
            opened = Database(connection)
            with opened.transaction():
                migrate(opened)
                for statement in create_views(privacy):
                    opened.execute(statement)
            connection.execute("CHECKPOINT")


def has_views(database: Path, privacy: Privacy) -> bool:
    """Tells whether the views of a published file are those that would be made for it now.

    Raises:
        RegisterError: the file is no register, or another process has it open for writing.
    """
    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            return connection.execute(READ_MARK).fetchall() == [(mark(privacy),)]
    except duckdb.Error as error:
        raise unreadable(DuckDBFile(database), error) from None


def renew_views(database: Path, privacy: Privacy) -> bool:
    """Recreates the views of the published file, where they are not those that it should have.

    They may come from another version, or another `KBO_PRIVACY`. The caller holds the lock of the
    register at work.

    Returns:
        False when nothing had to be done.

    Raises:
        RegisterError: the file is no register, or another process has it open for writing.
        StorageError: there is no room for a second copy.
    """
    if not database.exists() or has_views(database, privacy):
        return False
    check_space_to_keep("views", database.parent, database.stat().st_size)
    show_to_readers(database, database, privacy)
    return True


def show(register: Register, privacy: Privacy) -> None:
    """Makes what readers see besides the rows: views, and who is left out of them.

    Part of the caller's transaction. A copy for readers has them from there.
    """
    statements = fill_shown(privacy)
    if not register_has_views(register, privacy):
        statements = create_views(privacy, _below_views(register))
    with register.readers_schema():
        for statement in statements:
            register.database.execute(statement)


def register_has_views(register: Register, privacy: Privacy) -> bool:
    """Tells whether the views of the register are those that would be made for it now."""
    with register.readers_schema():
        return register.database.row(READ_MARK) == (mark(privacy, _below_views(register)),)


def renew_shared_views(register: Register, privacy: Privacy) -> bool:
    """Recreates the views of a shared register, where they are not those that it should have.

    Returns:
        False when nothing had to be done.
    """
    if register.ledger.published() is None or register_has_views(register, privacy):
        return False
    register.database.commit(lambda: show(register, privacy))
    return True


def _below_views(register: Register) -> tuple[str, ...]:
    return tuple(register_sql.published_views()) if register.is_shared else ()
