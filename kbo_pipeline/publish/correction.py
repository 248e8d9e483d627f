"""Repair: where the proof finds a difference, the Full takes the place of the newest extract.

In one transaction the extract is undone, the keys that differ are noted, and the job of the Full is
opened in its place. From there on the Full is applied, checked and published like any other, and
closes the differences with versions of its own number. Readers of a file keep what they have until
then. Whoever is killed in between leaves a half applied Full.
"""

from dataclasses import dataclass

import duckdb

from kbo_pipeline.apply import sql as register_sql
from kbo_pipeline.apply.register import Register, open_register_to_copy, open_register_to_write
from kbo_pipeline.core.errors import NOTHING_PUBLISHED, NotReadyError, OrderError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import indented, listed, union_all
from kbo_pipeline.core.tables import ALL_TABLES, Privacy, Table
from kbo_pipeline.publish.copy import show, show_to_readers
from kbo_pipeline.read.published import published_state_of, read_proofs
from kbo_pipeline.read.state_sql import state_now
from kbo_pipeline.stage.staged import Staged, open_staged


@dataclass(frozen=True, slots=True)
class Repair:
    """What beginning a repair did.

    Attributes:
        keys: how many keys differ, in all tables; the Full is to be applied if there are any.
        already_begun: it was begun before: nothing was done now.
    """

    keys: int
    already_begun: bool


def check_repair(settings: Settings, key: ExtractKey) -> ExtractKey:
    """Makes sure that the state at the number of an extract is known to be wrong.

    Args:
        settings: say where everything is.
        key: an extract of that number.

    Returns:
        The published extract of that number.

    Raises:
        NotReadyError: nothing is published; or its state was not compared with a Full, or is equal.
        OrderError: it is not the newest number.
    """
    newest = published_state_of(settings.database).newest
    if newest is None:
        raise NotReadyError(f"{settings.database}: {NOTHING_PUBLISHED}")
    if key.number != newest.number:
        raise OrderError(
            f"{key}: only the newest number can be repaired, that of {newest}; kbo verify compares"
            f" it, then kbo repair {newest}"
        )
    proof = read_proofs(settings).get(str(newest))
    if proof is None:
        raise NotReadyError(f"{newest}: not compared with its Full yet; kbo verify does it")
    if proof.is_equal:
        raise NotReadyError(f"{proof}: nothing to repair; kbo verify compares it again")
    return newest


def repair_status(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    full: ExtractKey,
    *,
    lock_timeout: float = 60.0,
) -> str | None:
    """The status in the ledger of a Full by which a repair was begun; changes nothing.

    Args:
        connection: an in-memory DuckDB.
        settings: say where the register is.
        full: the Full.
        lock_timeout: seconds to wait for another process that has the file.

    Returns:
        None where none was begun, or it was undone.

    Raises:
        StorageError: another process keeps the register.
    """
    with open_register_to_write(
        connection, settings.register, lock_timeout=lock_timeout
    ) as register:
        is_begun = _corrections(register, full)
        return register.ledger.job_status(full) if is_begun else None


def _corrections(register: Register, full: ExtractKey) -> int:
    register.migrate()
    return register.database.count(_COUNT_CORRECTIONS, number=full.number)


def begin_repair(
    connection: duckdb.DuckDBPyConnection, settings: Settings, full: ExtractKey
) -> Repair:
    """Undoes the newest published extract, and opens the staged Full of its number in its place.

    Where the register at work is equal to the Full, only what readers have was changed: they get
    another copy of it, and nothing is undone.

    Args:
        connection: an in-memory DuckDB.
        settings: say where everything is, and who is in the views.
        full: the Full.

    Raises:
        NotReadyError: it is not staged.
        OrderError: an extract of another number is the newest; names it.
    """
    with open_register_to_copy(connection, settings.register) as attach:
        with (
            attach() as register,
            open_staged(connection, settings.staging_dir, full) as staged,
        ):
            keys = _corrections(register, full)
            if keys and register.ledger.half_applied() == full:
                return Repair(keys, already_begun=True)
            keys = register.database.commit(lambda: _begin(register, staged, settings.privacy))
            register.checkpoint()
        file, database = settings.register.file, settings.database.file
        if not keys and file is not None and database is not None:
            show_to_readers(file, database, settings.privacy)
    return Repair(keys, already_begun=False)


def _begin(register: Register, staged: Staged, privacy: Privacy) -> int:
    """Does what `begin_repair` does, in the caller's transaction; returns the number of keys."""
    database, ledger, full = register.database, register.ledger, staged.extract.key
    published, number = ledger.published(), {"number": full.number}
    if published is None or published.number != full.number or ledger.half_applied() is not None:
        newest = ledger.half_applied() or published
        raise OrderError(
            f"{full}: only the newest number can be repaired; the newest extract is {newest}; kbo"
            f" retry {newest} finishes it, kbo rollback {newest} undoes it"
        )
    database.execute(_FIND_KEYS, **number)
    keys = database.count(_COUNT_KEYS)
    if not keys:
        return 0
    database.execute(register_sql.FORGET_CORRECTIONS, **number)
    database.execute(_KEEP_CORRECTIONS, **number)
    register.undo(published)
    database.execute(register_sql.FORGET_REJECTED, key=str(published))
    database.execute(register_sql.FORGET_PROOF, **number)
    ledger.roll_back_job(published)
    for table in ALL_TABLES:
        for statement in _straighten(table):
            database.execute(statement, **number)
    ledger.begin_job(staged)
    show(register, privacy)
    return keys


_COUNT_CORRECTIONS = "SELECT count(*) FROM correction WHERE extract_number = $number"


def _differing(table: Table) -> str:
    """The keys of a table whose rows are not those of the staged Full; binds `$number`."""
    new, old = register_sql.incoming(table, "full"), state_now(table)
    return f"""SELECT '{table.name}' AS table_name, key
FROM (
    {indented(register_sql.differing_keys(table, new, old))}
)"""


_FIND_KEYS = "CREATE OR REPLACE TEMP TABLE differing AS\n" + union_all(map(_differing, ALL_TABLES))

_COUNT_KEYS = "SELECT count(*) FROM temp.main.differing"

_KEEP_CORRECTIONS = """
INSERT INTO correction BY NAME
SELECT $number AS extract_number, *
FROM temp.main.differing
"""


def _straighten(table: Table) -> tuple[str, ...]:
    """Makes the versions of a table such as extracts before a number leave them; binds `$number`.

    No extract opens a version after it closes it, marks a closed one as current, or brings a row
    twice: a hand has done that. Of a row that is there twice, the older version stays. Everything
    else that is wrong, the Full closes.
    """
    name = table.name
    corrected = f"""{table.key} IN (
        SELECT key FROM correction WHERE extract_number = $number AND table_name = '{name}'
    )"""
    return (
        f"""DELETE FROM {name}
WHERE _extract_number >= $number OR _deleted_at_extract <= _extract_number""",
        f"""UPDATE {name}
SET _deleted_at_extract = CASE WHEN _deleted_at_extract < $number THEN _deleted_at_extract END,
    _is_current = coalesce(_deleted_at_extract >= $number, true)
WHERE _deleted_at_extract >= $number OR _is_current <> (_deleted_at_extract IS NULL)""",
        f"""DELETE FROM {name}
WHERE _is_current AND {corrected}
    AND rowid NOT IN (
        SELECT arg_min(rowid, _extract_number)
        FROM {name}
        WHERE _is_current AND {corrected}
        GROUP BY {listed(table.column_names, by=8)}
    )""",
    )
