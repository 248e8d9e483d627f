"""The register at work: applying batches, completing extracts. No Dagster.

A batch is one transaction over all seven tables and its own ledger rows. Only what differs is
written, so batches may come in any order, twice, or after a crash: the result is the same.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import duckdb

from kbo_pipeline.batches import Batch
from kbo_pipeline.database import Database
from kbo_pipeline.errors import DamagedError, KboError, NotReadyError, RegisterError
from kbo_pipeline.extracts import Extract, ExtractKey, ExtractType
from kbo_pipeline.ledger import BatchChange, Ledger, Link, TableChange, check_order
from kbo_pipeline.locks import exclusive_lock
from kbo_pipeline.sql import literal
from kbo_pipeline.sql import reading as reading_sql
from kbo_pipeline.sql import register as register_sql
from kbo_pipeline.staging import Staged, is_damage
from kbo_pipeline.tables import ALL_TABLES, CODE, TABLES, Table


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing an extract did.

    Attributes:
        code: the change of the `code` table.
        names_resolved: entities whose primary name was resolved anew.
        row_counts: current rows by table name, all eight.
        rows_changed: row versions that the extract closed or opened, by table name, the seven.
        already_published: nothing was done now.
        link: the extract in the chain of the ledger.
    """

    code: TableChange
    names_resolved: int
    row_counts: Mapping[str, int]
    rows_changed: Mapping[str, int]
    already_published: bool
    link: Link


@dataclass(frozen=True, slots=True)
class Rollback:
    """What rolling back an extract did.

    Attributes:
        dropped: row versions that the extract had opened, by table name, all eight.
        reopened: row versions that it had closed and that hold again, by table name.
        already_rolled_back: the ledger had it so before: nothing was done now.
    """

    dropped: Mapping[str, int]
    reopened: Mapping[str, int]
    already_rolled_back: bool


def is_transient(error: Exception) -> bool:
    """Tells whether the same call may succeed a moment later: locks, memory, disk, conflicts."""
    if isinstance(error, KboError):
        return error.transient
    if is_damage(error):
        return False
    passing = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException)
    return isinstance(error, (*passing, OSError))


def register_lock(file: Path) -> Path:
    """The lock that stands for writing to a register at work, whoever does it."""
    return file.with_suffix(".lock")


@contextmanager
def open_register(
    connection: duckdb.DuckDBPyConnection, file: Path, *, lock_timeout: float = 60.0
) -> Iterator["Register"]:
    """Attaches the register at work, made when it is not there; one process at a time.

    Args:
        connection: an in-memory DuckDB.
        file: the register's DuckDB file.
        lock_timeout: seconds to wait for another process.

    Raises:
        StorageError: another process keeps it.
        DamagedError: the file is not what was written.
    """
    with exclusive_lock(register_lock(file), lock_timeout), _attached(connection, file) as register:
        yield register


@contextmanager
def open_register_to_copy(
    connection: duckdb.DuckDBPyConnection, file: Path, *, lock_timeout: float = 60.0
) -> Iterator[Callable[[], AbstractContextManager["Register"]]]:
    """Keeps other processes away from the register, also while it is not attached.

    Yields a function that attaches it. The file may be read as a file only while it is detached:
    closing a second descriptor of it in this process would drop DuckDB's own lock, because POSIX
    locks go with the first close.
    """
    with exclusive_lock(register_lock(file), lock_timeout):
        yield lambda: _attached(connection, file)


@contextmanager
def _attached(connection: duckdb.DuckDBPyConnection, file: Path) -> Iterator["Register"]:
    try:
        connection.execute(f"ATTACH {literal(file)} AS register")
    except duckdb.Error as error:
        if not is_damage(error):
            raise
        first_line = str(error).split("\n", 1)[0]
        raise DamagedError(f"{file}: damaged ({first_line}); kbo rebuild mends it") from None
    try:
        connection.execute("USE register")
        # Publishing checkpoints once; by default each batch of a Full would.
        connection.execute("SET wal_autocheckpoint = '4GB'")
        register = Register(connection)
        register.prepare()
        yield register
    finally:
        connection.execute("USE memory")
        connection.execute("DETACH register")


class Register:
    """The register at work on an open connection; `open_register` makes it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Takes a connection on which the register is attached and the default database."""
        self._database = Database(connection)
        self.ledger = Ledger(self._database)

    def prepare(self) -> None:
        """Puts tables and ledger in place; without effect where they are."""
        with self._database.transaction():
            for table in ALL_TABLES:
                self._database.execute(register_sql.create_register_table(table))
            for statement in register_sql.CREATE_LEDGER:
                self._database.execute(statement)

    def row_counts(self) -> dict[str, int]:
        """Current rows by table name, all eight."""
        counts = {}
        for table in ALL_TABLES:
            row = self._database.row(f"SELECT count(*) FROM {table.name} WHERE _is_current")
            counts[table.name] = int(row[0]) if row else 0
        return counts

    def opened_rows(self, table: Table, key: ExtractKey, most: int) -> duckdb.DuckDBPyConnection:
        """A query for some row versions of a table that hold from an extract on."""
        return self._database.execute(register_sql.opened_rows(table), number=key.number, most=most)

    def apply(self, staged: Staged, batch: Batch, *, attempt: int = 1) -> BatchChange:
        """Applies one batch, in one transaction with its ledger rows; once, however often called.

        Args:
            staged: the extract, attached as `staging`.
            batch: one of its batches.
            attempt: which attempt this is, for the ledger.

        Raises:
            RegisterError: the staging file no longer holds what was staged.
            duckdb.Error: the transaction failed; nothing is changed.
        """
        extract = staged.extract
        applied = self.ledger.applied_change(extract.key, batch.number)
        if applied is not None:
            return applied
        with self._database.transaction():
            tables = {}
            for table in TABLES:
                records: dict[str, int] = {
                    operation: staged.records.get((table.name, batch.number, operation), 0)
                    for operation in extract.key.operations
                }
                self._check_staged(extract, table, batch, sum(records.values()))
                started = time.time()
                change = self._change(table, extract, extract.key.type, batch, records)
                tables[table.name] = change
                self.ledger.complete_table(extract, table, batch, change, attempt, started)
        return BatchChange(tables, already_applied=False)

    def _check_staged(self, extract: Extract, table: Table, batch: Batch, expected: int) -> None:
        row = self._database.row(
            register_sql.count_in_range(table, batch), **register_sql.range_parameters(batch)
        )
        found = int(row[0]) if row else 0
        if found != expected:
            raise RegisterError(
                f"{extract.key}: batch {batch.number}: {table.name}: {expected} rows were staged,"
                f" {found} are there; stage {extract.key} again"
            )

    def _change(
        self,
        table: Table,
        extract: Extract,
        extract_type: ExtractType,
        batch: Batch | None,
        records: Mapping[str, int],
    ) -> TableChange:
        """Closes what the extract removes and opens what it adds, in the range of a batch."""
        started = time.monotonic()
        if extract_type == "update" and not any(records.values()):
            return TableChange(0, 0, 0, 0, 0, 0.0)
        bounds = register_sql.range_parameters(batch)
        number = extract.key.number
        dated = {"number": number, "date": extract.snapshot_date}
        compare = bool(
            self._database.count(register_sql.holds_current_rows(table, batch), **bounds)
        )
        closed = unchanged = 0
        if compare:
            close = register_sql.close_rows(table, extract_type, batch)
            closed = self._database.count(close, number=number, **bounds)
            unchanged = self._database.count(
                register_sql.count_unchanged(table, extract_type, batch), **bounds
            )
        opened = self._database.count(
            register_sql.open_rows(table, batch, compare=compare), **dated, **bounds
        )
        duplicates = records.get("insert", 0) - opened - unchanged
        if duplicates < 0:
            raise RegisterError(
                f"{extract.key}: {table.name}: {opened} opened and {unchanged} unchanged of"
                f" {records.get('insert', 0)} rows; report this as a defect"
            )
        seconds = time.monotonic() - started
        return TableChange(sum(records.values()), closed, opened, unchanged, duplicates, seconds)

    def complete(self, staged: Staged, check: Callable[[], None] = lambda: None) -> Publication:
        """Completes an extract whose batches are all applied: `code`, names, the job itself.

        Args:
            staged: the extract, attached as `staging`.
            check: is called when all that is done and not committed; nothing is when it raises.

        Raises:
            NotReadyError: batches are missing; names how many.
        """
        extract = staged.extract
        check_order(extract.key, self.ledger.published())
        missing = self.ledger.missing_batches(extract.key)
        if missing or self.ledger.job_status(extract.key) in (None, "rolled_back"):
            raise NotReadyError(
                f"{extract.key}: {missing or len(staged.batches)} of {len(staged.batches)} batches"
                " are not applied; materialize their partitions first"
            )
        with self._database.transaction():
            records = {"insert": self._database.count("SELECT count(*) FROM staging.staged.code")}
            code = self._change(CODE, extract, "full", None, records)
            names = self._database.count(
                reading_sql.COUNT_NAMES_RESOLVED, number=extract.key.number
            )
            self.ledger.complete_job(extract.key, names)
            check()
        return self._publication(extract.key, code, names, already_published=False)

    def completed_publication(self, key: ExtractKey) -> Publication | None:
        """What publishing an extract did, when that is done already."""
        names = self.ledger.names_resolved(key)
        if names is None:
            return None
        nothing = TableChange(0, 0, 0, 0, 0, 0.0)
        return self._publication(key, nothing, names, already_published=True)

    def _publication(
        self, key: ExtractKey, code: TableChange, names: int, *, already_published: bool
    ) -> Publication:
        link = next(link for link in self.ledger.chain() if link.key == key)
        changed = self.ledger.rows_changed(key)
        return Publication(code, names, self.row_counts(), changed, already_published, link)

    def rollback(self, key: ExtractKey) -> Rollback:
        """Undoes the newest extract, published or half applied, in one transaction with the ledger.

        The register holds the row versions that it held before; once, however often called.

        Raises:
            OrderError: another extract is the newest; names it.
        """
        self.ledger.check_rollback(key)
        if self.ledger.job_status(key) == "rolled_back":
            return Rollback({}, {}, already_rolled_back=True)
        dropped, reopened = {}, {}
        with self._database.transaction():
            for table in ALL_TABLES:
                dropped[table.name] = self._database.count(
                    register_sql.drop_versions(table), number=key.number
                )
                reopened[table.name] = self._database.count(
                    register_sql.reopen_versions(table), number=key.number
                )
            self.ledger.roll_back_job(key)
        return Rollback(dropped, reopened, already_rolled_back=False)

    def checkpoint(self) -> None:
        """Moves the whole write-ahead log into the file."""
        self._database.execute("FORCE CHECKPOINT register")


def content_hash(connection: duckdb.DuckDBPyConnection) -> str:
    """A hash of all row versions of all tables of the register that is the default database.

    It does not depend on the order of rows in the file; compare it within one version of DuckDB.
    """
    rows = connection.execute(f"{reading_sql.CONTENT_OF_TABLES} ORDER BY table_name").fetchall()
    return sha256(repr(rows).encode()).hexdigest()
