"""From one place to another: all that is published in a register, compared by its hash.

A copy holds every row version and the ledger of what is published, so that it goes on from there.
"""

from collections.abc import Callable

import duckdb

from kbo_pipeline.apply.register import Register, open_register
from kbo_pipeline.core.errors import NOTHING_PUBLISHED, NotReadyError, RegisterError
from kbo_pipeline.core.extracts import read_ledger_entries
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.places import DuckDBFile, Place
from kbo_pipeline.core.tables import ALL_TABLES, Privacy
from kbo_pipeline.publish.views import show
from kbo_pipeline.read.published import content_hash, open_published

Report = Callable[[str], None]
"""Takes a line of progress."""

_KEYS = {table.name: table.key for table in ALL_TABLES}

_COPIED = (*_KEYS, "import_jobs", "import_job_batches", "rejected_row")
"""The tables that a register consists of."""

_IS_EMPTY = "SELECT count(*) = 0 FROM import_jobs"


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
        open_register(connection, target) as register,
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
