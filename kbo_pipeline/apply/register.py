"""The register at work: opened, filled batch by batch, undone; `publish` completes extracts.

A batch is one transaction over all seven tables and its own ledger rows. Only what differs is
written, so batches may come in any order, twice, or after a crash: the result is the same.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import duckdb

from kbo_pipeline.apply import sql as register_sql
from kbo_pipeline.apply.differences import Difference, Differences, Incomplete
from kbo_pipeline.apply.ledger import BatchChange, Ledger, TableChange
from kbo_pipeline.core import schema
from kbo_pipeline.core.database import Database, detach
from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.extracts import Batch, BatchKey, Extract, ExtractKey
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.places import WORK, DuckDBFile, Place
from kbo_pipeline.core.progress import ProgressReport, growing, not_reported, part_of
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES, Table
from kbo_pipeline.core.text import duration
from kbo_pipeline.stage import sql as staging_sql
from kbo_pipeline.stage.staged import Staged, open_staged, staging_file

_ADOPTED = 0.8
"""Share of applying a first Full that adopting its staging file as the register takes."""

_KEPT = ("import_jobs", "import_job_batches", "rejected_row", "proof", "correction")
"""Tables that are carried over when a staged Full becomes the register file."""


@contextmanager
def open_register_to_write(
    connection: duckdb.DuckDBPyConnection, place: Place, *, lock_timeout: float = 60.0
) -> Iterator["Register"]:
    """Attaches the register at work, made when it is not there; a file for one process at a time.

    Args:
        connection: an in-memory DuckDB.
        place: where the register at work is.
        lock_timeout: seconds to wait for another process that has the file.

    Raises:
        StorageError: another process keeps it, or what it lives in does not answer.
        DamagedError: the file is not what was written.
    """
    with place.sole_writer(lock_timeout), _attached(connection, place) as register:
        yield register


@contextmanager
def open_register_to_copy(
    connection: duckdb.DuckDBPyConnection, place: Place, *, lock_timeout: float = 60.0
) -> Iterator[Callable[[], AbstractContextManager["Register"]]]:
    """Keeps other processes away from a file at work, also while it is not attached.

    Yields a function that attaches it. The file may be read as a file only while it is detached:
    closing a second descriptor of it in this process would drop DuckDB's own lock, because POSIX
    locks go with the first close.
    """
    with place.sole_writer(lock_timeout):
        yield lambda: _attached(connection, place)


@contextmanager
def _attached(connection: duckdb.DuckDBPyConnection, place: Place) -> Iterator["Register"]:
    name = place.attach_to_write(connection, "register")
    try:
        register = Register(connection, place)
        register.prepare(name)
        yield register
    finally:
        detach(connection, name)


class Register:
    """The register at work on an open connection; `open_register_to_write` makes it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, place: Place) -> None:
        """Takes a connection on which the register is attached: the default database."""
        write_lock = register_sql.TAKE_WRITE_LOCK if place.is_shared else None
        self.database = Database(connection, write_lock=write_lock)
        self.place = place
        self._name = "register"
        self._differences = Differences(self.database, is_shared=place.is_shared)
        self._difference_of: dict[tuple[str, int], Difference] = {}  # by table name and batch
        self._incomplete: dict[int, Incomplete] = {}  # by batch
        self.ledger = Ledger(self.database, is_shared=place.is_shared)

    def prepare(self, name: str) -> None:
        """Makes the register the default database, an empty one where there is none.

        Args:
            name: the name it is attached as.

        Raises:
            RegisterError: it is newer than this program.
        """
        self._name = name
        self.database.execute(f"USE {name}")
        if self.is_shared:
            self.database.commit(self._prepare_shared, is_locking=False)
            self.use_work()
        elif not schema.is_register(self.database.connection):
            self.database.commit(lambda: schema.create(self.database, has_keys=True))
        schema.check(self.database.connection, self.place)
        self.database.before_first_write(self._migrate)

    def _prepare_shared(self) -> None:
        if self.database.row(register_sql.IS_PREPARED) != (True,):
            self.database.execute(f"CREATE SCHEMA IF NOT EXISTS {WORK}")
            self.use_work()
            if not schema.is_register(self.database.connection):
                schema.create(self.database, has_keys=False)
            for statement in register_sql.PREPARE:
                self.database.execute(statement)

    def _migrate(self) -> None:
        """Brings the register up to date; part of the transaction of the first write.

        A half applied extract was applied without the values of a new column: it is undone, and
        its batches have to be applied again, from a ZIP that is staged again.
        """
        if not schema.migrate(self.database):
            return
        half_applied = self.ledger.half_applied()
        if half_applied is not None:
            self.undo(half_applied)
            self.ledger.reopen_job(half_applied)

    def migrate(self) -> None:
        """Brings the register up to date now, for callers that only read it."""
        self.database.commit(lambda: None)

    @property
    def is_shared(self) -> bool:
        """Whether readers work in the same database, so that they see each commit."""
        return self.place.is_shared

    def row_counts(self) -> dict[str, int]:
        """Current rows by table name, all eight."""
        return {
            table.name: self.database.count(f"SELECT count(*) FROM {table.name} WHERE _is_current")
            for table in ALL_TABLES
        }

    def opened_rows(self, table: Table, key: ExtractKey, most: int) -> duckdb.DuckDBPyConnection:
        """A query for some row versions of a table that hold from an extract on."""
        return self.database.execute(register_sql.opened_rows(table), number=key.number, most=most)

    @contextmanager
    def importing(
        self, staging_dir: Path, key: ExtractKey, report: ProgressReport = not_reported
    ) -> Iterator[Staged]:
        """Opens an extract to be applied: its staging file as `staging`, its job in the ledger.

        What it changes is computed once, for all batches.

        Args:
            staging_dir: where staging files are.
            key: the extract.
            report: takes how much is done of finding what it changes.

        Raises:
            NotReadyError: it is not staged.
            DamagedError: its staging file is not what was staged.
            OrderError: it does not follow what is published; names what is expected.
            RegisterError: batches of another file of the same key are applied.
        """
        with open_staged(self.database.connection, staging_dir, key) as staged:
            self.ledger.open_job(staged)
        is_adopted = False
        file = self.place.file
        if file is not None and key.type == "full" and not self.ledger.has_applied():
            self._adopt(staging_file(staging_dir, key), file, part_of(report, 0, _ADOPTED))
            report, is_adopted = part_of(report, _ADOPTED, 1), True
        with open_staged(self.database.connection, staging_dir, key) as staged:
            self._incomplete = self._differences.find_incomplete(staged)
            self._difference_of = self._differences.find(
                staged, is_adopted=is_adopted, report=report
            )
            yield staged

    def _adopt(self, staged_full: Path, file: Path, report: ProgressReport) -> None:
        """Makes a copy of a staged Full the register in a file, in which nothing is applied.

        Its batches then find their rows in place. Writing 47 million rows once more takes as long
        as reading them from the CSV files. The file is replaced at one instant; it must not be
        attached as `staging`.
        """
        database = self.database
        for name in _KEPT:
            database.execute(f"CREATE OR REPLACE TEMP TABLE kept_{name} AS FROM {name}")
        detach(database.connection, "register")
        try:
            with replace_atomically(file) as temporary:
                length = staged_full.stat().st_size
                with growing(temporary, length, part_of(report, 0, 0.5), "copying the Full"):
                    shutil.copyfile(staged_full, temporary)
                with _attached(database.connection, DuckDBFile(temporary)):
                    for place, table in enumerate(ALL_TABLES):
                        report(0.5 + 0.4 * place / len(ALL_TABLES), f"checking {table.name}")
                        database.execute(register_sql.drop_superseded(table))
                        for statement in register_sql.require_values(table):
                            database.execute(statement)
                    for statement in register_sql.NOT_OF_THE_REGISTER:
                        database.execute(statement)
                    for name in _KEPT:
                        database.execute(f"INSERT INTO {name} BY NAME FROM temp.main.kept_{name}")
                    report(0.9, "writing the register")
                    self.checkpoint()
        finally:
            self.place.attach_to_write(database.connection, "register")
            database.execute("USE register")

    def differences_in(self, batch: int) -> dict[str, Difference]:
        """What a batch of the extract that is being imported changes, by table name."""
        return {
            table: difference
            for (table, number), difference in self._difference_of.items()
            if number == batch
        }

    def apply(self, staged: Staged, batch: Batch, *, attempt: int = 1) -> BatchChange:
        """Applies one batch, in one transaction with its ledger rows; once, however often called.

        Args:
            staged: the extract, attached as `staging`; from `importing`.
            batch: one of its batches.
            attempt: which attempt this is, for the ledger.

        Raises:
            RegisterError: the staging file no longer holds what was staged.
            duckdb.Error: the transaction failed; nothing is changed.
        """
        applied = self.ledger.applied_change(staged.extract.key, batch.number)
        if applied is not None:
            return applied
        if incomplete := self._incomplete.get(batch.number):
            key = staged.extract.key
            raise RegisterError(
                f"{key}: batch {batch.number}: {incomplete.table.name}:"
                f" {incomplete.expected:,} rows were staged, {incomplete.there:,} are there;"
                f" kbo retry {key} stages it again"
            )
        return self.database.commit(lambda: self._apply(staged, batch, attempt))

    def _apply(self, staged: Staged, batch: Batch, attempt: int) -> BatchChange:
        """Applies a batch in the caller's transaction, unless another writer has done it."""
        extract = staged.extract
        if self.is_shared:
            applied = self.ledger.applied_change(extract.key, batch.number)
            if applied is not None:
                return applied
        started = time.time()
        changes = {
            table.name: self._change(
                table,
                extract,
                batch,
                self._difference_of.get((table.name, batch.number), Difference()),
                {
                    operation: staged.records.get((table.name, batch.number, operation), 0)
                    for operation in extract.key.operations
                },
                staged.superseded.get((table.name, batch.number), 0),
            )
            for table in TABLES
        }
        self.ledger.complete_batch(staged, batch, changes, attempt, started)
        return BatchChange(changes, already_applied=False)

    def _change(
        self,
        table: Table,
        extract: Extract,
        batch: Batch | None,
        difference: Difference,
        records: Mapping[str, int],
        superseded: int,
    ) -> TableChange:
        """Closes what the extract removes and opens what it adds, in the range of a batch.

        Args:
            table: the table.
            extract: the extract, attached as `staging`.
            batch: the range; None for the whole table.
            difference: how they differ in the range.
            records: staged rows in the range by operation.
            superseded: how many of the inserted ones say nothing new.
        """
        started = time.monotonic()
        number = {"number": extract.key.number}
        bounds = register_sql.range_parameters(batch)
        closed = opened = 0
        if difference.to_close:
            if self.is_shared and batch is not None:
                closed = self.database.count(
                    register_sql.note_rows_to_close(table, batch), **bounds
                )
            else:
                close = register_sql.close_rows(table, batch)
                closed = self.database.count(close, **number, **bounds)
        if difference.to_open:
            date = {"date": extract.snapshot_date}
            open_ = register_sql.open_rows(table, batch)
            opened = self.database.count(open_, **date, **number, **bounds)
        unchanged = records.get("insert", 0) - superseded - difference.opened - opened
        if (closed, opened) != (difference.to_close, difference.to_open) or unchanged < 0:
            raise RegisterError(
                f"{extract.key}: {table.name}: {closed} rows closed of {difference.to_close},"
                f" {opened} opened of {difference.to_open}, {unchanged} unchanged; report this as a"
                " defect"
            )
        opened += difference.opened
        seconds = time.monotonic() - started
        return TableChange(sum(records.values()), closed, opened, unchanged, superseded, seconds)

    def apply_rest(self, staged: Staged) -> TableChange:
        """Applies what belongs to no batch: rows noted to be closed, `code`, the rows set aside.

        Part of the caller's transaction.

        Returns:
            The change of `code`.
        """
        extract = staged.extract
        self._close_noted(extract.key)
        self._differences.find_in(CODE, extract, is_whole=True)
        difference = self._differences.count_in(CODE)
        ((_, rows),) = self.database.execute(staging_sql.count_staged(CODE)).fetchall()
        superseded = self.database.count(register_sql.COUNT_SUPERSEDED, table=CODE.name)
        code = self._change(CODE, extract, None, difference, {"insert": rows}, superseded)
        self.database.execute(register_sql.FORGET_REJECTED, key=str(extract.key))
        self.database.execute(register_sql.KEEP_REJECTED, key=str(extract.key))
        return code

    def _close_noted(self, key: ExtractKey) -> None:
        """Closes the rows of a shared register that the batches of an extract have noted."""
        for name, noted in self._noted().items():
            table = next(table for table in TABLES if table.name == name)
            closed = self.database.count(register_sql.close_noted(table), number=key.number)
            if closed != noted:
                raise RegisterError(
                    f"{key}: {name}: {closed} rows closed of {noted} that its batches have noted;"
                    f" kbo rollback {key}, then import it again"
                )
        self.forget_noted()

    def _noted(self) -> dict[str, int]:
        """How many rows of a shared register are noted to be closed, by table name."""
        if not self.is_shared:
            return {}
        return dict(self.database.execute(register_sql.COUNT_NOTED).fetchall())

    def forget_noted(self) -> None:
        """Forgets what batches have noted to be closed."""
        if self.is_shared:
            self.database.execute(register_sql.FORGET_NOTED)

    def undo(self, key: ExtractKey) -> tuple[dict[str, int], dict[str, int]]:
        """Restores the rows as they were before an extract; returns how many it had changed."""
        dropped, reopened = {}, {}
        noted = self._noted()
        self.forget_noted()
        number = {"number": key.number}
        for table in ALL_TABLES:
            dropped[table.name] = self.database.count(register_sql.drop_versions(table), **number)
            reopened[table.name] = noted.get(table.name, 0) + self.database.count(
                register_sql.reopen_versions(table), **number
            )
        return dropped, reopened

    def checkpoint(self) -> None:
        """Moves the whole write-ahead log into the file; a shared register has none."""
        if not self.is_shared:
            self.database.execute("FORCE CHECKPOINT register")

    @contextmanager
    def readers_schema(self) -> Iterator[None]:
        """Makes what readers see the default schema."""
        self.database.execute(f"USE {self._name}")
        try:
            yield
        finally:
            self.use_work()

    def use_work(self) -> None:
        """Makes the register at work the default schema."""
        self.database.execute(f"USE {self._name}.{self.place.schema_at_work}")


TALLY_COLUMNS = ("table", "batches", "of", "percent", "rows_closed", "rows_opened", "seconds")
"""The columns of `Tally.rows`."""


class Tally:
    """What the batches of a run have done so far, in all and by table."""

    def __init__(self, total: int) -> None:
        """Begins at nothing.

        Args:
            total: batches that the run is to apply.
        """
        self._total = total
        self._done = self._failed = 0
        self._tables = {table.name: (0, 0, 0.0) for table in TABLES}

    def add(self, change: BatchChange) -> None:
        """Counts a batch that is committed."""
        self._done += 1
        for name, table in change.tables.items():
            closed, opened, seconds = self._tables[name]
            self._tables[name] = (
                closed + table.rows_closed,
                opened + table.rows_opened,
                seconds + table.seconds,
            )

    def add_failed(self) -> None:
        """Counts a batch that has failed."""
        self._failed += 1

    @property
    def place(self) -> str:
        """Which batch of the run was counted last: `3 of 48`."""
        return f"{self._done + self._failed} of {self._total}"

    @property
    def is_complete(self) -> bool:
        """Whether all batches are counted."""
        return self._done + self._failed == self._total

    @property
    def percent(self) -> float:
        """Share of the batches that is done, 0 to 100, with one decimal."""
        return round(100 * self._done / self._total, 1)

    def line(self, batch: BatchKey, change: BatchChange, left: float) -> str:
        """The line of the log about the batch that was counted last, the largest change first.

        Args:
            batch: the batch.
            change: what it did.
            left: seconds until the extract is published.
        """
        head = f"{batch}, {self.place} ({self.percent:.0f} %):"
        if change.already_applied:
            return f"{head} was applied before"
        tables = sorted(
            change.tables.items(), key=lambda item: -(item[1].rows_closed + item[1].rows_opened)
        )
        parts = [
            f"{name} {table.rows_closed:,} closed, {table.rows_opened:,} opened"
            for name, table in tables
            if table.rows_closed or table.rows_opened
        ]
        rest = "" if self.is_complete else f", about {duration(left)} left"
        return f"{head} {'; '.join(parts) or 'no change'}{rest}"

    def rows(self) -> list[tuple[str, int, int, float, int, int, float]]:
        """A row for each table, the last one for all, as `TALLY_COLUMNS` names them."""
        closed, opened, seconds = zip(*self._tables.values(), strict=True)
        by_table = {**self._tables, "all": (sum(closed), sum(opened), sum(seconds))}
        head = (self._done, self._total, self.percent)
        return [
            (name, *head, closed, opened, round(seconds, 3))
            for name, (closed, opened, seconds) in by_table.items()
        ]
