"""The file that readers open: replaced whole by a copy of the register, with its views."""

import shutil
from pathlib import Path

import duckdb

from kbo_pipeline.core.checksums import check_blocks
from kbo_pipeline.core.database import Database
from kbo_pipeline.core.disk_space import check_space_to_keep
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.schema import check, migrate
from kbo_pipeline.core.settings import Privacy
from kbo_pipeline.read.published import _unreadable
from kbo_pipeline.read.views import READ_MARK, create_views, mark


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
    check_space_to_keep("views", database.parent, database.stat().st_size)
    show_to_readers(database, database, privacy)
    return True
