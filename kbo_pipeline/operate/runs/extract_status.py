"""What `kbo status` says of an extract, as plain data. No Dagster."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["pending", "processing", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """One operation of one table in one batch."""

    table: str
    batch: int
    operation: str


@dataclass(frozen=True, slots=True)
class TableProgress:
    """How many of its batches a table has; `completed` and `total` count batches."""

    completed: int
    total: int
    status: State


@dataclass(frozen=True, slots=True)
class ExtractStatus:
    """How far the import of an extract is.

    Attributes:
        job_id: the extract's key.
        status: `completed` means published.
        stage: what it is at, in words: `staging`, `applying`, `publishing`, ...
        tables: by table name; empty before the extract is cut into batches.
        current_batch: where the running import is: the first batch, and in it the first table and
            operation, that is not committed; None when nothing runs.
        next_batch: the place of the batch after that one, or of the first missing one when nothing
            runs; None when there is none.
        failed_batches: every table of every batch whose last attempt failed.
        error: why the last run of the extract failed; None when it did not.
        rejected_rows: records of the ZIP that are set aside, and not applied.
        seconds_left: estimate from the pace so far; None when there is no pace yet.
    """

    job_id: str
    status: State
    stage: str
    tables: dict[str, TableProgress]
    current_batch: BatchPlace | None
    next_batch: BatchPlace | None
    failed_batches: tuple[BatchPlace, ...]
    error: str | None
    rejected_rows: int
    seconds_left: float | None

    @property
    def completed(self) -> int:
        """Batches that are committed, counted once for each table."""
        return sum(table.completed for table in self.tables.values())

    @property
    def total(self) -> int:
        """All batches, counted once for each table."""
        return sum(table.total for table in self.tables.values())

    @property
    def percentage(self) -> float:
        """Share of the batches that is committed, 0 to 100, with one decimal."""
        return round(100 * self.completed / self.total, 1) if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields that programs rely on; see `kbo status --json` in the README."""
        return {
            "job_id": self.job_id,
            "status": self.status,
            "overall": {
                "completed": self.completed,
                "total": self.total,
                "percentage": self.percentage,
            },
            "tables": {name: asdict(table) for name, table in self.tables.items()},
            "current_batch": asdict(self.current_batch) if self.current_batch else None,
            "next_batch": asdict(self.next_batch) if self.next_batch else None,
            "failed_batches": [asdict(place) for place in self.failed_batches],
            "error": self.error,
            "rejected_rows": self.rejected_rows,
        }
