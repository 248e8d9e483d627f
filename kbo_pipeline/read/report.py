"""What the change report tells, read from the published register. No Dagster."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.read import report_sql
from kbo_pipeline.read.anomalies import MOST, Anomaly, Counts, Standout, find_anomalies
from kbo_pipeline.read.changes import Change
from kbo_pipeline.read.kinds import KINDS

HISTORY = 30
"""An extract is compared with so many before it."""

EXAMPLES = 5
"""So many changes of each kind are on the page."""

REJECTED = 20
"""So many records that are set aside are on the page."""

_LEAST_KINDS, _LEAST_ENTITIES = 2, 3
_CLOSED, _OPENED = "closed", "opened"


@dataclass(frozen=True, slots=True)
class Day:
    """What an extract did to the rows of the tables.

    Attributes:
        key: the extract.
        snapshot_date: the day whose end it shows.
        rows: rows `closed` and `opened`, by table.
    """

    key: ExtractKey
    snapshot_date: datetime.date
    rows: Counts

    def of_table(self, name: str) -> int:
        """Rows of a table that it closed or opened."""
        return sum(count for (table, _), count in self.rows.items() if table == name)

    @property
    def total(self) -> int:
        """Rows of all tables that it closed or opened."""
        return sum(self.rows.values())


@dataclass(frozen=True, slots=True)
class Rejected:
    """Records of an extract that are set aside.

    Attributes:
        count: how many.
        first: file, line, column and reason of the first `REJECTED`; no column where it is about
            a whole record.
    """

    count: int = 0
    first: tuple[tuple[str, int, str | None, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """What an extract changed.

    Attributes:
        day: the extract itself.
        before: the extracts before it, the oldest first, at most `HISTORY`.
        is_first: nothing was in the register before: all is new, and nothing is listed.
        kinds: changed entities, by table and kind, all kinds in their order.
        past_kinds: those of the extracts before that have a report.
        entities: how many entities changed.
        examples: some changes of each kind.
        unusual: the most unusual things.
        rejected: what is set aside.
    """

    day: Day
    before: tuple[Day, ...]
    is_first: bool
    kinds: Counts
    past_kinds: tuple[Counts, ...]
    entities: int
    examples: tuple[Change, ...]
    unusual: tuple[Anomaly, ...]
    rejected: Rejected

    @property
    def changes(self) -> int:
        """Changes that are listed: an entity may have several, of different kinds."""
        return sum(self.kinds.values())


def read_report(database: Database, key: ExtractKey, lists: Mapping[str, Path]) -> ChangeReport:
    """Reads what an extract changed; its changes are in the table `report_changes` afterwards.

    Args:
        database: has the published register as its default database.
        key: a published extract.
        lists: the lists of other reports, by extract key.
    """
    first = database.count(report_sql.FIRST_EXTRACT)
    days = _days(database, key)
    if key.number == first:
        return ChangeReport(days[-1], (), True, {}, (), 0, (), (), _rejected(database, key))
    before = tuple(day for day in days[:-1] if day.key.number != first)
    database.execute(report_sql.CREATE_CHANGES, number=key.number)
    counted = database.execute(report_sql.COUNT_BY_KIND).fetchall()
    found = {(table, kind): count for table, kind, count in counted}
    kinds = {(k.table.name, k.name): found.get((k.table.name, k.name), 0) for k in KINDS}
    past_kinds = _past_kinds(database, [lists[str(d.key)] for d in before if str(d.key) in lists])
    unusual = find_anomalies(
        days[-1].rows,
        [day.rows for day in before],
        kinds,
        past_kinds,
        _standouts(database, report_sql.MOST_KINDS, _LEAST_KINDS),
        _standouts(database, report_sql.MOST_ENTITIES, _LEAST_ENTITIES),
    )
    examples = database.execute(report_sql.EXAMPLES, most=EXAMPLES).fetchall()
    return ChangeReport(
        days[-1],
        before,
        False,
        kinds,
        past_kinds,
        database.count(report_sql.COUNT_ENTITIES),
        tuple(Change(*row) for row in examples),
        tuple(unusual),
        _rejected(database, key),
    )


def _rejected(database: Database, key: ExtractKey) -> Rejected:
    rows = database.execute(report_sql.REJECTED_ROWS, key=str(key), most=REJECTED).fetchall()
    return Rejected(database.count(report_sql.COUNT_REJECTED, key=str(key)), tuple(rows))


def _days(database: Database, key: ExtractKey) -> list[Day]:
    """The extract and those before it, the oldest first, with one to spare for the first of all."""
    rows = database.execute(report_sql.HISTORY, number=key.number, extracts=HISTORY + 1).fetchall()
    days = []
    for (number, kind, date), tables in groupby(rows, key=lambda row: row[:3]):
        counts: dict[tuple[str, str], int] = {
            (table.name, what): 0 for table in TABLES for what in (_CLOSED, _OPENED)
        }
        for *_, table, closed, opened in tables:
            if table is not None:
                counts[table, _CLOSED], counts[table, _OPENED] = closed, opened
        days.append(Day(ExtractKey(number, kind), date, counts))
    return days


def _past_kinds(database: Database, lists: Sequence[Path]) -> tuple[Counts, ...]:
    """What each of these lists holds, by table and kind."""
    if not lists:
        return ()
    found: dict[str, dict[tuple[str, str], int]] = {str(file): {} for file in lists}
    counted = database.execute(report_sql.COUNT_IN_FILES, files=list(found)).fetchall()
    for file, table, kind, count in counted:
        found[file][table, kind] = count
    return tuple(found.values())


def _standouts(database: Database, query: str, least: int) -> list[Standout]:
    parameters: Mapping[str, Any] = {"least": least, "most": MOST}
    return [Standout(*row) for row in database.execute(query, **parameters).fetchall()]
