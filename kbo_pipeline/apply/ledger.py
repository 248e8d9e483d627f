"""The ledger: which batches of which extracts are applied. It commits with the data.

What it says is done is done; Dagster's events only tell of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import OrderError, RegisterError
from kbo_pipeline.core.extracts import (
    Batch,
    Extract,
    ExtractKey,
    LedgerEntry,
    PublishedState,
    check_order,
    read_ledger_entries,
    read_published_state,
)
from kbo_pipeline.core.sql import listed
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.stage.staged import Staged


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


# A value for each table and operation of a batch, bound as lists.
_OF_OPERATION = (
    *("table_name", "operation", "records", "started", "completed"),
    *("closed", "opened", "unchanged", "duplicates"),
)

_COMPLETED = f"""(
    SELECT {listed((f"unnest(${name}) AS {name}" for name in _OF_OPERATION), by=8)}
)"""

_UPDATE_COMPLETED = f"""
UPDATE import_job_batches b SET status = 'completed', attempts = $attempts,
    started_at = to_timestamp(c.started), completed_at = to_timestamp(c.completed),
    error_message = NULL, rows_closed = c.closed, rows_opened = c.opened,
    rows_unchanged = c.unchanged, duplicates_dropped = c.duplicates
FROM {_COMPLETED} c
WHERE b.job_id = $id AND b.batch_number = $batch AND b.status <> 'completed'
    AND b.table_name = c.table_name AND b.operation = c.operation AND b.records_count = c.records
"""

_APPEND_COMPLETED = f"""
INSERT INTO import_job_batches BY NAME
SELECT $id AS job_id, c.table_name, $batch AS batch_number, c.operation, 'completed' AS status,
    c.records AS records_count, $attempts AS attempts, to_timestamp(c.started) AS started_at,
    to_timestamp(c.completed) AS completed_at, c.closed AS rows_closed, c.opened AS rows_opened,
    c.unchanged AS rows_unchanged, c.duplicates AS duplicates_dropped
FROM {_COMPLETED} c
"""


class Ledger:
    """The tables `import_jobs` and `import_job_batches` of the register at work.

    In a file, each batch of an extract has its rows from the beginning. In a shared register it has
    them when it is done, or has failed: appending is cheaper there than changing rows.
    """

    def __init__(self, database: Database, *, is_shared: bool) -> None:
        self._database = database
        self._is_shared = is_shared

    def published(self) -> ExtractKey | None:
        """The newest published extract; None when there is none."""
        return self.published_state().newest

    def published_state(self) -> PublishedState:
        """What is published, and what was rolled back."""
        return read_published_state(self._database.connection)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """The published extracts, each with a hash over all that came before."""
        return read_ledger_entries(self._database.connection)

    def half_applied(self) -> ExtractKey | None:
        """The extract whose batches are being applied; None when there is none."""
        row = self._database.row(
            "SELECT id FROM import_jobs WHERE status NOT IN ('completed', 'rolled_back')"
        )
        return ExtractKey.parse(row[0]) if row else None

    def job_status(self, key: ExtractKey) -> str | None:
        """The status of an extract in the ledger; None when it is not there."""
        row = self._database.row("SELECT status FROM import_jobs WHERE id = $id", id=str(key))
        return cast(str, row[0]) if row else None

    def applied_change(self, key: ExtractKey, batch_number: int) -> BatchChange | None:
        """What an applied batch did, from the ledger; None when it is not applied."""
        rows = self._database.execute(
            """
            SELECT table_name, sum(records_count)::BIGINT, sum(rows_closed)::BIGINT,
                sum(rows_opened)::BIGINT, sum(rows_unchanged)::BIGINT,
                sum(duplicates_dropped)::BIGINT, max(epoch(completed_at) - epoch(started_at))
            FROM import_job_batches
            WHERE job_id = $id AND batch_number = $batch
            GROUP BY table_name
            HAVING bool_and(status = 'completed')
            """,
            id=str(key),
            batch=batch_number,
        ).fetchall()
        tables = {
            str(name): TableChange(records, closed, opened, unchanged, duplicates, seconds)
            for name, records, closed, opened, unchanged, duplicates, seconds in rows
        }
        return BatchChange(tables, already_applied=True) if len(tables) == len(TABLES) else None

    def rows_changed(self, key: ExtractKey) -> dict[str, int]:
        """Row versions that an extract closed or opened, by table name."""
        rows = self._database.execute(
            """
            SELECT table_name, sum(rows_closed + rows_opened)::BIGINT
            FROM import_job_batches
            WHERE job_id = $id
            GROUP BY table_name
            """,
            id=str(key),
        ).fetchall()
        return {table.name: 0 for table in TABLES} | dict(rows)

    def missing_batches(self, key: ExtractKey) -> int:
        """How many batches of an extract are not applied."""
        return self._database.count(
            """
            SELECT (SELECT coalesce(sum(total_batches), 0) FROM import_jobs WHERE id = $id)
                - count(*)
            FROM (
                SELECT batch_number
                FROM import_job_batches
                WHERE job_id = $id
                GROUP BY batch_number
                HAVING bool_and(status = 'completed')
            )
            """,
            id=str(key),
        )

    def names_resolved(self, key: ExtractKey) -> int | None:
        """Names that publishing an extract resolved; None when it is not published."""
        row = self._database.row(
            "SELECT names_resolved FROM import_jobs WHERE id = $id AND status = 'completed'",
            id=str(key),
        )
        return int(row[0]) if row else None

    def open_job(self, staged: Staged) -> None:
        """Opens the job of an extract in the ledger, or takes it up again.

        Raises:
            OrderError: the extract does not follow what is published; names what is expected.
            RegisterError: batches of another file of the same key are applied.
        """
        extract = staged.extract
        half_applied = self.half_applied()
        is_other = half_applied not in (None, extract.key)
        unfinished = OrderError(f"{extract.key}: {half_applied} is half applied; finish it first")
        if is_other and half_applied is not None and half_applied.number < extract.key.number:
            raise unfinished
        check_order(extract.key, self.published())
        if is_other:
            raise unfinished
        self._database.commit(lambda: self.begin_job(staged))

    def begin_job(self, staged: Staged) -> None:
        """`open_job` as part of the caller's transaction, which has seen to the order."""
        extract = staged.extract
        noted = self._database.row(
            "SELECT sha256, total_batches FROM import_jobs WHERE id = $id", id=str(extract.key)
        )
        is_same_cut = noted == (extract.sha256, len(staged.batches)) and self._has_rows_of(staged)
        if noted and not is_same_cut:
            self._forget(extract, other_file=noted[0] != extract.sha256)
        if not is_same_cut:
            self._insert_job(staged)
        elif self._is_shared:
            self._forget_unfinished(extract.key)
        self._update_job(
            extract.key,
            """
            status = 'processing', error_message = NULL, started_at = coalesce(started_at, now())
            """,
        )

    def has_applied(self) -> bool:
        """Tells whether any batch of any extract is applied and not rolled back."""
        row = self._database.row("SELECT 1 FROM import_job_batches WHERE status = 'completed'")
        return row is not None

    def complete_batch(
        self,
        staged: Staged,
        batch: Batch,
        changes: Mapping[str, TableChange],
        attempt: int,
        started: float,
    ) -> None:
        """Completes the rows of a batch; part of the caller's transaction.

        Closing counts for the first operation, opening for the last.

        Args:
            staged: the extract.
            batch: the batch.
            changes: by table name, for all seven.
            attempt: which attempt this is.
            started: when it began, in seconds of the epoch.

        Raises:
            RegisterError: the job is not open, or no longer what was staged.
        """
        extract, operations = staged.extract, staged.extract.key.operations
        columns: dict[str, list[Any]] = {name: [] for name in _OF_OPERATION}
        for name, change in changes.items():
            for operation in operations:
                closes, opens = operation == operations[0], operation == operations[-1]
                records = staged.records.get((name, batch.number, operation), 0)
                row = (
                    *(name, operation, records, started, started + change.seconds),
                    change.rows_closed if closes else 0,
                    *(change.rows_opened if opens else 0, change.rows_unchanged if opens else 0),
                    change.duplicates_dropped if opens else 0,
                )
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
            started += change.seconds  # one table after the other
        if self._is_shared:
            self._forget_unfinished(extract.key, batch)
        complete = _APPEND_COMPLETED if self._is_shared else _UPDATE_COMPLETED
        done = self._database.count(
            complete, id=str(extract.key), batch=batch.number, attempts=attempt, **columns
        )
        if done != len(changes) * len(operations) or not self._is_open(staged):
            raise RegisterError(
                f"{extract.key}: batch {batch.number}: its ledger rows are not open; apply"
                f" {extract.key} again"
            )

    def fail(self, staged: Staged, batch: Batch, attempt: int, message: str) -> None:
        """Notes in the ledger that the last attempt at a batch failed."""
        self._database.commit(lambda: self._fail(staged, batch, attempt, message))

    def _fail(self, staged: Staged, batch: Batch, attempt: int, message: str) -> None:
        key = staged.extract.key
        if self._is_shared:
            if self.applied_change(key, batch.number) is not None or not self._is_open(staged):
                return
            self._forget_unfinished(key, batch)
            self._append_open(staged, [batch])
        self._database.execute(
            """
            UPDATE import_job_batches
            SET status = 'failed', attempts = $attempts,
                error_message = $message
            WHERE job_id = $id AND batch_number = $batch AND status <> 'completed'
            """,
            id=str(key),
            batch=batch.number,
            attempts=attempt,
            message=message,
        )
        self.fail_job(key, f"batch {batch.number}: {message}")

    def fail_job(self, key: ExtractKey, message: str) -> None:
        """Notes in the ledger why an extract cannot be applied, or published."""
        self._update_job(key, "status = 'failed', error_message = $message", message=message)

    def cancel_job(self, key: ExtractKey) -> None:
        """Notes that the import of an extract was stopped; without effect once it has ended."""
        self._database.execute(
            """
            UPDATE import_jobs
            SET status = 'cancelled'
            WHERE id = $id AND status IN ('pending', 'processing', 'failed')
            """,
            id=str(key),
        )

    def check_rollback(self, key: ExtractKey) -> None:
        """Makes sure that an extract is the newest in the register, or rolled back already.

        Raises:
            OrderError: names the one that is the newest.
        """
        if self.job_status(key) == "rolled_back":
            return
        half_applied = self.half_applied()
        newest = half_applied or self.published()
        if newest is None:
            raise OrderError(f"{key}: the register is empty; there is nothing to roll back")
        if newest != key:
            what = f"{newest}, which is {'half applied' if half_applied else 'published'}"
            raise OrderError(
                f"{key}: only the newest extract can be rolled back: {what};"
                f" kbo rollback {newest} comes first"
                if key.number <= newest.number
                else f"{key}: it is not in the register; the newest extract there is {what}"
            )

    def roll_back_job(self, key: ExtractKey) -> None:
        """Marks an extract as rolled back, without batches; part of the caller's transaction."""
        self._delete_batches(key)
        self._update_job(
            key,
            """
            status = 'rolled_back', names_resolved = NULL, error_message = NULL,
            completed_at = now()
            """,
        )

    def reopen_job(self, key: ExtractKey) -> None:
        """Marks an extract as not begun, without batches; part of the caller's transaction."""
        self._delete_batches(key)
        self._update_job(key, "status = 'pending', error_message = NULL")

    def complete_job(self, key: ExtractKey, names_resolved: int) -> None:
        """Marks an extract as published; part of the caller's transaction."""
        self._update_job(
            key,
            """
            status = 'completed', names_resolved = $names, error_message = NULL,
            completed_at = now()
            """,
            names=names_resolved,
        )

    def _update_job(self, key: ExtractKey, assignments: str, **values: Any) -> None:
        statement = f"UPDATE import_jobs\nSET {assignments.strip()}\nWHERE id = $id"
        self._database.execute(statement, id=str(key), **values)

    def _delete_batches(self, key: ExtractKey) -> None:
        self._database.execute("DELETE FROM import_job_batches WHERE job_id = $id", id=str(key))

    def _is_open(self, staged: Staged) -> bool:
        """Tells whether batches of this cut may be applied: its job has not ended."""
        row = self._database.row(
            """
            SELECT sha256, total_batches
            FROM import_jobs
            WHERE id = $id
                AND status NOT IN ('completed', 'rolled_back')
            """,
            id=str(staged.extract.key),
        )
        return row == (staged.extract.sha256, len(staged.batches))

    def _has_rows_of(self, staged: Staged) -> bool:
        """Tells whether the ledger's rows are those of this staging file, batch by batch."""
        rows = self._database.execute(
            """
            SELECT table_name, batch_number, operation, records_count
            FROM import_job_batches
            WHERE job_id = $id
            """,
            id=str(staged.extract.key),
        ).fetchall()
        keys = _ledger_keys(staged, staged.batches)
        return {*rows} <= {*keys} if self._is_shared else sorted(rows) == sorted(keys)

    def _forget_unfinished(self, key: ExtractKey, batch: Batch | None = None) -> None:
        """Removes rows of failed batches, or of one, from the ledger of a shared register."""
        self._database.execute(
            """
            DELETE
            FROM import_job_batches
            WHERE job_id = $id AND status <> 'completed'
                AND batch_number = coalesce($batch, batch_number)
            """,
            id=str(key),
            batch=batch.number if batch is not None else None,
        )

    def _forget(self, extract: Extract, *, other_file: bool) -> None:
        """Makes room for another cut of an extract: its batches will find their rows unchanged."""
        applied = self._database.count(
            "SELECT count(*) FROM import_job_batches WHERE job_id = $id AND status = 'completed'",
            id=str(extract.key),
        )
        if other_file and applied:
            raise RegisterError(
                f"{extract.key}: batches of another file with this key are applied; import that"
                f" file to its end, or undo them: kbo rollback {extract.key}"
            )
        self._delete_batches(extract.key)
        self._database.execute("DELETE FROM import_jobs WHERE id = $id", id=str(extract.key))

    def _insert_job(self, staged: Staged) -> None:
        extract = staged.extract
        self._database.execute(
            """
            INSERT INTO import_jobs BY NAME
            SELECT $id AS id, $number AS extract_number,
                $type AS extract_type, $date AS snapshot_date, $timestamp AS extract_timestamp,
                $source_file AS source_file, $sha256 AS sha256, 'pending' AS status,
                $batches AS total_batches, now() AS created_at
            """,
            id=str(extract.key),
            number=extract.key.number,
            type=extract.key.type,
            date=extract.snapshot_date,
            timestamp=extract.timestamp,
            source_file=extract.source_file,
            sha256=extract.sha256,
            batches=len(staged.batches),
        )
        if not self._is_shared:
            self._append_open(staged, staged.batches)

    def _append_open(self, staged: Staged, batches: Sequence[Batch]) -> None:
        """Appends the rows of batches that are not applied: all at once, as one file of a lake."""
        columns = ("table_name", "batch_number", "operation", "records_count")
        values = zip(*_ledger_keys(staged, batches), strict=True)
        self._database.execute(
            f"""
            INSERT INTO import_job_batches BY NAME
            SELECT $id AS job_id, 'pending' AS status, 0 AS attempts,
                {listed(f"unnest(${name}) AS {name}" for name in columns)}
            """,
            id=str(staged.extract.key),
            **{name: list(column) for name, column in zip(columns, values, strict=True)},
        )


def _ledger_keys(staged: Staged, batches: Sequence[Batch]) -> list[tuple[str, int, str, int]]:
    return [
        (t.name, batch.number, operation, staged.records.get((t.name, batch.number, operation), 0))
        for t in TABLES
        for batch in batches
        for operation in staged.extract.key.operations
    ]
