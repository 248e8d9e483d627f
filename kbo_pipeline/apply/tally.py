"""How far applying the batches of an extract is, counted as each commits. No Dagster, no I/O."""

from collections.abc import Mapping

from kbo_pipeline.apply.ledger import BatchChange
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.core.text import duration

TALLY_COLUMNS = ("table", "batches", "of", "percent", "rows_closed", "rows_opened", "seconds")
"""The columns of `Tally.rows`."""


class Tally:
    """What the batches of a run have done so far, in all and by table."""

    def __init__(self, total: int, started: float) -> None:
        """Begins at nothing.

        Args:
            total: batches that the run is to apply.
            started: when it began, in seconds of any clock.
        """
        self._total, self._started = total, started
        self._done = self._fresh = 0
        self._tables = {table.name: (0, 0, 0.0) for table in TABLES}

    def add(self, change: BatchChange) -> None:
        """Counts a batch that is committed."""
        self._done += 1
        self._fresh += not change.already_applied
        for name, table in change.tables.items():
            closed, opened, seconds = self._tables[name]
            self._tables[name] = (
                closed + table.rows_closed,
                opened + table.rows_opened,
                seconds + table.seconds,
            )

    @property
    def is_complete(self) -> bool:
        """Whether all batches are counted."""
        return self._done == self._total

    @property
    def percent(self) -> float:
        """Share of the batches that is done, 0 to 100, with one decimal."""
        return round(100 * self._done / self._total, 1)

    def seconds_left(self, now: float) -> float | None:
        """How long the rest will take at the pace so far; None when there is none yet.

        Batches that were applied before the run took no time, and do not count.
        """
        if not self._fresh:
            return None
        return (now - self._started) / self._fresh * (self._total - self._done)

    def line(self, change: BatchChange, now: float) -> str:
        """The line of the log about the batch that was counted last, the largest change first."""
        head = f"batch {self._done}/{self._total} ({self._done / self._total:.0%})"
        if change.already_applied:
            return f"{head} already applied"
        tables = sorted(
            change.tables.items(), key=lambda item: -(item[1].rows_closed + item[1].rows_opened)
        )
        parts = [
            f"{name} {table.rows_closed} closed, {table.rows_opened} opened"
            for name, table in tables
            if table.rows_closed or table.rows_opened
        ]
        left = self.seconds_left(now)
        rest = f", about {duration(left)} left" if left and not self.is_complete else ""
        return f"{head} {'; '.join(parts) or 'no change'}{rest}"

    def rows(self) -> list[tuple[str, int, int, float, int, int, float]]:
        """A row for each table, the last one for all, as `TALLY_COLUMNS` names them."""
        return [self._row(name, counts) for name, counts in self._by_table().items()]

    def _by_table(self) -> Mapping[str, tuple[int, int, float]]:
        columns = list(zip(*self._tables.values(), strict=True))
        in_all = (sum(columns[0]), sum(columns[1]), sum(columns[2]))
        return {**self._tables, "all": in_all}

    def _row(
        self, name: str, counts: tuple[int, int, float]
    ) -> tuple[str, int, int, float, int, int, float]:
        closed, opened, seconds = counts
        return name, self._done, self._total, self.percent, closed, opened, round(seconds, 3)
