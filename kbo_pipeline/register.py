"""The register at work: what is published, applying batches, the ledger. No Dagster.

A batch is one transaction over all seven tables and its own ledger rows. Only what differs is
written, so batches may come in any order, twice, or after a crash: the result is the same.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import duckdb

from kbo_pipeline.batches import Batch
from kbo_pipeline.errors import KboError, NotReadyError, OrderError, RegisterError
from kbo_pipeline.extracts import Extract, ExtractKey, ExtractType
from kbo_pipeline.locks import exclusive_lock
from kbo_pipeline.sql import literal
from kbo_pipeline.sql import reading as reading_sql
from kbo_pipeline.sql import register as register_sql
from kbo_pipeline.staging import Staged, is_damage
from kbo_pipeline.tables import ALL_TABLES, CODE, TABLES, Table


@dataclass(frozen=True, slots=True)
class TableChange:
    """What applying did to one table.

    Attributes:
        records: rows of the extract, deletes and inserts.
        rows_closed: row versions that no longer hold.
        rows_opened: row versions that hold from this extract on.
        rows_unchanged: rows that the extract brought again and that were current already.
        duplicates_dropped: rows that the extract brought more than once.
        seconds: time that it took.
    """

    records: int
    rows_closed: int
    rows_opened: int
    rows_unchanged: int
    duplicates_dropped: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchChange:
    """What one batch did.

    Attributes:
        tables: by table name, for all seven.
        already_applied: the ledger had it before: nothing was done now.
    """

    tables: Mapping[str, TableChange]
    already_applied: bool


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing an extract did.

    Attributes:
        code: the change of the `code` table.
        names_resolved: entities whose primary name was resolved anew.
        row_counts: current rows by table name, all eight.
        already_published: nothing was done now.
    """

    code: TableChange
    names_resolved: int
    row_counts: Mapping[str, int]
    already_published: bool


def is_transient(error: Exception) -> bool:
    """Tells whether the same call may succeed a moment later: locks, memory, disk, conflicts."""
    if isinstance(error, KboError):
        return error.transient
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
        RegisterError: the file is damaged.
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
        raise RegisterError(f"{file}: damaged ({first_line}); rebuild it") from None
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
        self._connection = connection

    def prepare(self) -> None:
        """Puts tables, ledger, views and macros in place; without effect where they are."""
        with self._transaction():
            for table in ALL_TABLES:
                self._execute(register_sql.create_register_table(table))
            for statement in register_sql.CREATE_LEDGER:
                self._execute(statement)
            self._execute('CREATE SCHEMA IF NOT EXISTS register."current"')
            for table in ALL_TABLES:
                for statement in reading_sql.views(table):
                    self._execute(statement)

    def published(self) -> ExtractKey | None:
        """The newest published extract; None when there is none."""
        return next((key for key, _ in self.published_extracts()), None)

    def published_extracts(self) -> list[tuple[ExtractKey, str]]:
        """The published extracts and the sha256 of their ZIPs, the newest first."""
        return published_extracts(self._connection)

    def half_applied(self) -> ExtractKey | None:
        """The extract whose batches are being applied; None when there is none."""
        row = self._row("SELECT id FROM import_jobs WHERE status IN ('processing', 'failed')")
        return ExtractKey.parse(row[0]) if row else None

    def job_status(self, key: ExtractKey) -> str | None:
        """What the ledger says of an extract; None when it does not know it."""
        row = self._row("SELECT status FROM import_jobs WHERE id = $id", id=str(key))
        return cast(str, row[0]) if row else None

    def applied_change(self, key: ExtractKey, batch_number: int) -> BatchChange | None:
        """What an applied batch did, from the ledger; None when it is not applied."""
        rows = self._execute(
            "SELECT table_name, sum(records_count)::BIGINT, sum(rows_closed)::BIGINT,"
            " sum(rows_opened)::BIGINT, sum(rows_unchanged)::BIGINT,"
            " sum(duplicates_dropped)::BIGINT, max(epoch(completed_at) - epoch(started_at))"
            " FROM import_job_batches WHERE job_id = $id AND batch_number = $batch"
            " GROUP BY table_name HAVING bool_and(status = 'completed')",
            id=str(key),
            batch=batch_number,
        ).fetchall()
        tables = {
            str(name): TableChange(records, closed, opened, unchanged, duplicates, seconds)
            for name, records, closed, opened, unchanged, duplicates, seconds in rows
        }
        return BatchChange(tables, already_applied=True) if len(tables) == len(TABLES) else None

    def row_counts(self) -> dict[str, int]:
        """Current rows by table name, all eight."""
        counts = {}
        for table in ALL_TABLES:
            row = self._row(f"SELECT count(*) FROM {table.name} WHERE _is_current")
            counts[table.name] = int(row[0]) if row else 0
        return counts

    def begin(self, staged: Staged) -> None:
        """Opens the job of an extract in the ledger, or takes it up again.

        Raises:
            OrderError: the extract does not follow what is published; names what is expected.
            RegisterError: batches of another file of the same key are applied.
        """
        extract = staged.extract
        check_order(extract.key, self.published())
        half_applied = self.half_applied()
        if half_applied not in (None, extract.key):
            raise OrderError(f"{extract.key}: {half_applied} is half applied; finish it first")
        known = self._row(
            "SELECT sha256, total_batches FROM import_jobs WHERE id = $id", id=str(extract.key)
        )
        with self._transaction():
            if known and not self._same_cut(staged):
                self._forget(extract, other_file=known[0] != extract.sha256)
                known = None
            if not known:
                self._insert_job(staged)
            self._execute(
                "UPDATE import_jobs SET status = 'processing', error_message = NULL,"
                " started_at = coalesce(started_at, now()) WHERE id = $id",
                id=str(extract.key),
            )

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
        applied = self.applied_change(extract.key, batch.number)
        if applied is not None:
            return applied
        with self._transaction():
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
                self._settle(extract, table, batch, change, attempt, started)
        return BatchChange(tables, already_applied=False)

    def fail(self, staged: Staged, batch: Batch, attempt: int, message: str) -> None:
        """Notes in the ledger that the last attempt at a batch failed."""
        with self._transaction():
            self._execute(
                "UPDATE import_job_batches SET status = 'failed', attempts = $attempts,"
                " error_message = $message"
                " WHERE job_id = $id AND batch_number = $batch AND status <> 'completed'",
                id=str(staged.extract.key),
                batch=batch.number,
                attempts=attempt,
                message=message,
            )
            self._execute(
                "UPDATE import_jobs SET status = 'failed', error_message = $message WHERE id = $id",
                id=str(staged.extract.key),
                message=f"batch {batch.number}: {message}",
            )

    def _check_staged(self, extract: Extract, table: Table, batch: Batch, expected: int) -> None:
        row = self._row(
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
        compare = bool(self._count(register_sql.holds_current_rows(table, batch), **bounds))
        closed = unchanged = 0
        if compare:
            close = register_sql.close_rows(table, extract_type, batch)
            closed = self._count(close, number=number, **bounds)
            unchanged = self._count(
                register_sql.count_unchanged(table, extract_type, batch), **bounds
            )
        opened = self._count(
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

    def _settle(
        self,
        extract: Extract,
        table: Table,
        batch: Batch,
        change: TableChange,
        attempt: int,
        started: float,
    ) -> None:
        """Completes the ledger rows of one table in a batch: closing counts for the first one."""
        first, last = extract.key.operations[0], extract.key.operations[-1]
        row = self._row(
            "UPDATE import_job_batches SET status = 'completed', attempts = $attempts,"
            " started_at = to_timestamp($started), completed_at = to_timestamp($completed),"
            " error_message = NULL,"
            " rows_closed = CASE operation WHEN $first THEN $closed ELSE 0 END,"
            " rows_opened = CASE operation WHEN $last THEN $opened ELSE 0 END,"
            " rows_unchanged = CASE operation WHEN $last THEN $unchanged ELSE 0 END,"
            " duplicates_dropped = CASE operation WHEN $last THEN $duplicates ELSE 0 END"
            " WHERE job_id = $id AND table_name = $table AND batch_number = $batch"
            " AND status <> 'completed'",
            id=str(extract.key),
            table=table.name,
            batch=batch.number,
            attempts=attempt,
            started=started,
            completed=time.time(),  # now() would be the beginning of the transaction
            first=first,
            last=last,
            closed=change.rows_closed,
            opened=change.rows_opened,
            unchanged=change.rows_unchanged,
            duplicates=change.duplicates_dropped,
        )
        if not row or row[0] != len(extract.key.operations):
            raise RegisterError(
                f"{extract.key}: batch {batch.number}: {table.name}: its ledger rows are not open;"
                f" apply {extract.key} again"
            )

    def complete(self, staged: Staged) -> Publication:
        """Completes an extract whose batches are all applied: `code`, names, the job itself.

        Raises:
            NotReadyError: batches are missing; names how many.
        """
        extract = staged.extract
        check_order(extract.key, self.published())
        missing = self._count(
            "SELECT count(DISTINCT batch_number) FROM import_job_batches"
            " WHERE job_id = $id AND status <> 'completed'",
            id=str(extract.key),
        )
        if missing or self.job_status(extract.key) is None:
            raise NotReadyError(
                f"{extract.key}: {missing or len(staged.batches)} of {len(staged.batches)} batches"
                " are not applied; materialize their partitions first"
            )
        with self._transaction():
            records = {"insert": self._count("SELECT count(*) FROM staging.staged.code")}
            code = self._change(CODE, extract, "full", None, records)
            names = self._count(reading_sql.COUNT_NAMES_RESOLVED, number=extract.key.number)
            self._execute(
                "UPDATE import_jobs SET status = 'completed', names_resolved = $names,"
                " error_message = NULL, completed_at = now() WHERE id = $id",
                id=str(extract.key),
                names=names,
            )
        return Publication(code, names, self.row_counts(), already_published=False)

    def completed_publication(self, key: ExtractKey) -> Publication | None:
        """What publishing an extract did, when that is done already."""
        row = self._row(
            "SELECT names_resolved FROM import_jobs WHERE id = $id AND status = 'completed'",
            id=str(key),
        )
        if row is None:
            return None
        nothing = TableChange(0, 0, 0, 0, 0, 0.0)
        return Publication(nothing, int(row[0]), self.row_counts(), already_published=True)

    def checkpoint(self) -> None:
        """Moves the whole write-ahead log into the file."""
        self._execute("FORCE CHECKPOINT register")

    def _same_cut(self, staged: Staged) -> bool:
        """Tells whether the ledger's rows are those of this staging file, batch by batch."""
        extract = staged.extract
        row = self._row("SELECT sha256 FROM import_jobs WHERE id = $id", id=str(extract.key))
        rows = self._execute(
            "SELECT table_name, batch_number, operation, records_count FROM import_job_batches"
            " WHERE job_id = $id",
            id=str(extract.key),
        ).fetchall()
        return row == (extract.sha256,) and sorted(rows) == sorted(_ledger_keys(staged))

    def _forget(self, extract: Extract, *, other_file: bool) -> None:
        """Makes room for another cut of an extract: its batches will find their rows unchanged."""
        applied = self._count(
            "SELECT count(*) FROM import_job_batches WHERE job_id = $id AND status = 'completed'",
            id=str(extract.key),
        )
        if other_file and applied:
            raise RegisterError(
                f"{extract.key}: batches of another file with this key are applied; import that"
                " file to its end first"
            )
        self._execute("DELETE FROM import_job_batches WHERE job_id = $id", id=str(extract.key))
        self._execute("DELETE FROM import_jobs WHERE id = $id", id=str(extract.key))

    def _insert_job(self, staged: Staged) -> None:
        extract = staged.extract
        self._execute(
            "INSERT INTO import_jobs BY NAME SELECT $id AS id, $number AS extract_number,"
            " $type AS extract_type, $date AS snapshot_date, $timestamp AS extract_timestamp,"
            " $source_file AS source_file, $sha256 AS sha256, 'pending' AS status,"
            " $batches AS total_batches, now() AS created_at",
            id=str(extract.key),
            number=extract.key.number,
            type=extract.key.type,
            date=extract.snapshot_date,
            timestamp=extract.timestamp,
            source_file=extract.source_file,
            sha256=extract.sha256,
            batches=len(staged.batches),
        )
        self._connection.executemany(
            "INSERT INTO import_job_batches (job_id, table_name, batch_number, operation,"
            " records_count, status, attempts) VALUES (?, ?, ?, ?, ?, 'pending', 0)",
            [(str(extract.key), *row) for row in _ledger_keys(staged)],
        )

    def _execute(self, statement: str, **parameters: Any) -> duckdb.DuckDBPyConnection:
        return self._connection.execute(statement, parameters)

    def _row(self, statement: str, **parameters: Any) -> tuple[Any, ...] | None:
        return self._execute(statement, **parameters).fetchone()

    def _count(self, statement: str, **parameters: Any) -> int:
        row = self._row(statement, **parameters)
        return int(row[0]) if row else 0

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN TRANSACTION")
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")


def published_extracts(connection: duckdb.DuckDBPyConnection) -> list[tuple[ExtractKey, str]]:
    """The published extracts and the sha256 of their ZIPs, the newest first.

    The register must be the default database of the connection.
    """
    rows = connection.execute(
        "SELECT extract_number, extract_type, sha256 FROM import_jobs WHERE status = 'completed'"
        " ORDER BY extract_number DESC, completed_at DESC"
    ).fetchall()
    return [(ExtractKey(number, kind), sha256) for number, kind, sha256 in rows]


def check_order(key: ExtractKey, published: ExtractKey | None) -> None:
    """Makes sure that an extract may be applied after what is published.

    Raises:
        OrderError: names the extract that is expected.
    """
    if published is None:
        if key.type == "update":
            raise OrderError(f"{key}: the register is empty; import a Full first")
    elif key.number <= published.number:
        raise OrderError(f"{key}: {published} is published; what it brings is in the register")
    elif key.type == "update" and key.number != published.number + 1:
        expected = ExtractKey(published.number + 1, "update")
        raise OrderError(
            f"{key}: {published} is published; {expected} is expected, or a Full above it"
        )


def content_hash(connection: duckdb.DuckDBPyConnection) -> str:
    """A hash of all row versions of all tables of the register that is the default database.

    It does not depend on the order of rows in the file; compare it within one version of DuckDB.
    """
    rows = connection.execute(f"{reading_sql.CONTENT_OF_TABLES} ORDER BY table_name").fetchall()
    return sha256(repr(rows).encode()).hexdigest()


def _ledger_keys(staged: Staged) -> list[tuple[str, int, str, int]]:
    return [
        (t.name, batch.number, operation, staged.records.get((t.name, batch.number, operation), 0))
        for t in TABLES
        for batch in staged.batches
        for operation in staged.extract.key.operations
    ]
