"""A register copied for readers, with the views that it should have, or to another place.

Views may come from another version, or another `KBO_PRIVACY`. A published file gets its own as it
is copied; a shared register has them in `main`, above its views of the schema `work`. A copy at
another place holds every row version and the ledger of what is published, so that it goes on from
there; both are compared by their hash.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import duckdb

from kbo_pipeline.apply import sql as register_sql
from kbo_pipeline.apply.register import Register, open_register_to_write
from kbo_pipeline.core.database import Database, check_blocks
from kbo_pipeline.core.disk_space import check_space_to_keep
from kbo_pipeline.core.errors import NOTHING_PUBLISHED, NotReadyError, RegisterError
from kbo_pipeline.core.extracts import ExtractKey, read_ledger_entries
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.places import DuckDBFile, Place
from kbo_pipeline.core.progress import ProgressReport, growing, not_reported, part_of
from kbo_pipeline.core.schema import check, migrate
from kbo_pipeline.core.tables import ALL_TABLES, Privacy
from kbo_pipeline.publish import checks_sql
from kbo_pipeline.read import profile_sql
from kbo_pipeline.read.published import content_hash, open_published, unreadable
from kbo_pipeline.read.state_sql import fill_shown
from kbo_pipeline.read.views import READ_MARK, create_views, mark

Report = Callable[[str], None]
"""Takes a line of progress."""

_KEYS = {table.name: table.key for table in ALL_TABLES}

_COPIED = (*_KEYS, "import_jobs", "import_job_batches", "rejected_row", "proof", "correction")
"""The tables that a register consists of."""

_IS_EMPTY = "SELECT count(*) = 0 FROM import_jobs"

MANY_ENTERPRISES = 50_000
"""With fewer of them, views choose quickly enough: a table of profiles is not worth its making."""


def show_to_readers(
    file: Path, database: Path, privacy: Privacy, report: ProgressReport = not_reported
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
    return _mark_of(database) in (mark(privacy), mark(privacy, kept=True))


def has_profiles(database: Path, privacy: Privacy) -> bool:
    """Tells whether they are, and read the table of profiles; raises what `has_views` does."""
    return _mark_of(database) == mark(privacy, kept=True)


def _mark_of(database: Path) -> str | None:
    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            return next((comment for (comment,) in connection.execute(READ_MARK).fetchall()), None)
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


def show(register: Register, privacy: Privacy, changed_by: ExtractKey | None = None) -> None:
    """Makes what readers see besides the rows: views, who is left out of them, and profiles.

    Part of the caller's transaction. A copy for readers has them from there.

    Args:
        register: the register.
        privacy: who is in the views.
        changed_by: the extract that alone has changed rows since the last call, and few of them;
            None if more may have changed: profiles go then, until `keep_profiles`.
    """
    kept = changed_by is not None and _has_profiles(register)
    statements = fill_shown(privacy)
    if not _has_mark(register, mark(privacy, _below_views(register), kept=kept)):
        statements = create_views(privacy, _below_views(register), kept=kept)
    if kept and changed_by is not None:
        register.database.execute(checks_sql.create_touched(), number=changed_by.number)
        statements = (*profile_sql.renew_profiles(checks_sql.TOUCHED), *statements)
    with register.readers_schema():
        for statement in statements:
            register.database.execute(statement)


def has_many_enterprises(register: Register) -> bool:
    """Whether a table of profiles is worth its making."""
    return register.database.count(profile_sql.COUNT_ENTERPRISES) >= MANY_ENTERPRISES


def keep_profiles(register: Register, privacy: Privacy) -> bool:
    """Makes the table of profiles, and views that read it, where they are not there.

    Returns:
        False when the newest extract is not published, or nothing is.
    """
    ledger = register.ledger
    if ledger.published() is None or ledger.half_applied() is not None:
        return False
    if _has_mark(register, mark(privacy, kept=True)):
        return True
    with register.database.transaction():
        counts = register.database.execute(profile_sql.COUNT_BY_PREFIX).fetchall()
        fill = map(profile_sql.fill_profiles, profile_sql.ranges(counts))
        for statement in (
            *(profile_sql.create_profiles(), *fill),
            *create_views(privacy, kept=True),
        ):
            register.database.execute(statement)
    register.checkpoint()
    return True


def register_has_views(register: Register, privacy: Privacy) -> bool:
    """Tells whether the views of the register are those that would be made for it now."""
    return any(
        _has_mark(register, mark(privacy, _below_views(register), kept=kept))
        for kept in (False, True)
    )


def _has_profiles(register: Register) -> bool:
    """Whether the table of profiles is that of the state before the caller's transaction."""
    return any(_has_mark(register, mark(privacy, kept=True)) for privacy in get_args(Privacy))


def _has_mark(register: Register, expected: str) -> bool:
    with register.readers_schema():
        return register.database.row(READ_MARK) == (expected,)


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


def copy_register(
    connection: duckdb.DuckDBPyConnection,
    source: Place,
    target: Place,
    *,
    privacy: Privacy,
    report: Report = lambda line: None,
) -> str:
    """Copies what is published in one place to another, where nothing is yet.

    The target is whole or as it was: a file is renamed when it is finished, and what is shared is
    written in one transaction. Nothing is left there when the hashes differ.

    Args:
        connection: an in-memory DuckDB.
        source: a published file, or a shared register.
        target: a file that is not there, or a shared register in which nothing is.
        privacy: who is in the views of the target.
        report: takes a line of progress.

    Returns:
        The hash of the content of both.

    Raises:
        NotReadyError: nothing is published at the source.
        RegisterError: something is at the target; or the copy is not what the source is.
        StorageError: one of them does not answer, or the disk is full.
    """
    if target.file is not None:
        if target.file.exists():
            raise RegisterError(f"{target}: there is a file already; name another, or move it away")
        with replace_atomically(target.file) as path:
            temporary = DuckDBFile(path)
            try:
                return _copy(connection, source, temporary, privacy, report, is_new=True)
            finally:  # ours: no other process knows the file yet
                temporary.lock.unlink(missing_ok=True)
    return _copy(connection, source, target, privacy, report, is_new=True)


def replace_shared(
    connection: duckdb.DuckDBPyConnection,
    source: Place,
    target: Place,
    *,
    privacy: Privacy,
    report: Report = lambda line: None,
) -> str:
    """Puts what a register holds in place of all that a shared register does, in one transaction.

    Takes, returns and raises what `copy_register` does; something may be at the target.
    """
    return _copy(connection, source, target, privacy, report, is_new=False)


def _copy(
    connection: duckdb.DuckDBPyConnection,
    source: Place,
    target: Place,
    privacy: Privacy,
    report: Report,
    *,
    is_new: bool,
) -> str:
    with (
        open_register_to_write(connection, target) as register,
        open_published(connection, source) as state,
    ):
        if state.newest is None:
            raise NotReadyError(f"{source}: {NOTHING_PUBLISHED}")
        (row,) = connection.execute("SELECT current_database()").fetchall()
        expected = (content_hash(connection), read_ledger_entries(connection))
        report(f"{source}: {state.newest}, content {expected[0][:12]}")

        def check() -> None:
            if (content_hash(connection), read_ledger_entries(connection)) != expected:
                raise RegisterError(
                    f"{target}: differs from {source} after copying; nothing is written; try again"
                )

        _take_over(register, str(row[0]), privacy, check, is_new=is_new)
        register.checkpoint()
    return expected[0]


def _take_over(
    register: Register, source: str, privacy: Privacy, check: Callable[[], None], *, is_new: bool
) -> None:
    """Replaces everything by what readers of another register see, in one transaction.

    Args:
        register: the target.
        source: what that register is attached as.
        privacy: who is in the views.
        check: is called when all is done and not committed, with what readers will see as the
            default database; nothing is done when it raises.
        is_new: nothing may be there.

    Raises:
        RegisterError: something is there.
    """
    register.use_work()
    with register.database.transaction():
        if is_new and register.database.row(_IS_EMPTY) != (True,):
            raise RegisterError(f"{register.place}: a register is there; name an empty place")
        register.forget_noted()
        for name in _COPIED:
            register.database.execute(f"DELETE FROM {name}")
            register.database.execute(_copy_table(name, source))
        show(register, privacy)
        with register.readers_schema():
            check()


def _copy_table(name: str, source: str) -> str:
    """Copies a table in the order of its keys, so that zone maps and statistics of files help."""
    order = f"\nORDER BY {_KEYS[name]}, _extract_number" if name in _KEYS else ""
    return f"INSERT INTO {name} BY NAME\nSELECT * FROM {source}.main.{name}{order}"
