"""What an extract changed, compared with the extracts before it, and what is unusual in it.

`docs/change-report.md` explains to readers what is called usual and unusual.
"""

import datetime
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ENTERPRISE, TABLES
from kbo_pipeline.core.text import counted
from kbo_pipeline.read.changes import CHANGED_ENTITIES, KINDS, NEW, STOPPED, Change

HISTORY = 30
"""Extracts that one is compared with."""

EXAMPLES = 5
"""Changes of each kind on the page."""

REJECTED = 20
"""Records that are set aside on the page."""

_LEAST_KINDS, _LEAST_ENTITIES = 2, 3
CLOSED, OPENED = "closed", "opened"

MOST = 10
"""Unusual things that are named."""

_MOST_COUNTS = 4
_MOST_RARE = 3

LEAST_PAST = 8
"""Numbers that must be known before another can be unusual."""
FACTOR = 3.0
"""An unusual number is more than this times the median, or less than the median by this."""
LEAST_ROWS = 50
"""Its least distance from the median."""
SPREADS = 4.0
"""Its least distance from the median, in usual spreads."""

Counts = Mapping[tuple[str, str], int]
"""Numbers by table and kind, or by table and `closed` or `opened`."""


@dataclass(frozen=True, slots=True)
class Standout:
    """An enterprise that stands out among those that an extract changed.

    Attributes:
        enterprise_number, name: which.
        kinds: in how many ways it changed.
        entities: how many of its entities changed: itself, establishment units, branches.
        listed: the ways, in words.
    """

    enterprise_number: str
    name: str
    kinds: int
    entities: int
    listed: str


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One unusual thing.

    Attributes:
        subject: a table and kind, or an enterprise with its name.
        text: what is unusual.
    """

    subject: str
    text: str


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
class ChangeReport:
    """What an extract changed.

    Attributes:
        day: the extract itself.
        before: the extracts before it, the oldest first, at most `HISTORY`.
        rejected_count: records that are set aside.
        rejected: file, line, column and reason of the first `REJECTED` of them; no column where it
            is about a whole record.
        is_first: nothing was in the register before: all is new, and nothing is listed.
        kinds: changed entities, by table and kind, all kinds in their order.
        past_kinds: those of the extracts before that have a report.
        entities: how many entities changed.
        examples: some changes of each kind.
        unusual: the most unusual things.
    """

    day: Day
    before: tuple[Day, ...]
    rejected_count: int
    rejected: tuple[tuple[str, int, str | None, str], ...]
    is_first: bool = True
    kinds: Counts = field(default_factory=dict)
    past_kinds: tuple[Counts, ...] = ()
    entities: int = 0
    examples: tuple[Change, ...] = ()
    unusual: tuple[Anomaly, ...] = ()

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
    first = database.count("SELECT min(extract_number) FROM import_jobs WHERE status = 'completed'")
    *before, day = _days(database, key)
    rejected_count = database.count(
        "SELECT count(*) FROM rejected_row WHERE extract = $key", key=str(key)
    )
    rejected = tuple(database.execute(_REJECTED_ROWS, key=str(key), most=REJECTED).fetchall())
    if key.number == first:
        return ChangeReport(day, (), rejected_count, rejected)
    before = [past for past in before if past.key.number != first]
    database.execute(
        f"CREATE OR REPLACE TEMP TABLE report_changes AS {CHANGED_ENTITIES}", number=key.number
    )
    rows = database.execute(
        "SELECT table_name, kind, count(*) FROM report_changes GROUP BY ALL"
    ).fetchall()
    counts = {(table, kind): count for table, kind, count in rows}
    kinds = {(k.table.name, k.name): counts.get((k.table.name, k.name), 0) for k in KINDS}
    past_kinds = _past_kinds(database, [lists[str(d.key)] for d in before if str(d.key) in lists])
    unusual = find_anomalies(
        day.rows,
        [past.rows for past in before],
        kinds,
        past_kinds,
        _standouts(database, _MOST_KINDS, _LEAST_KINDS),
        _standouts(database, _MOST_ENTITIES, _LEAST_ENTITIES),
    )
    examples = database.execute(_FIND_EXAMPLES, most=EXAMPLES).fetchall()
    return ChangeReport(
        day,
        tuple(before),
        rejected_count,
        rejected,
        is_first=False,
        kinds=kinds,
        past_kinds=past_kinds,
        entities=database.count("SELECT count(DISTINCT entity_number) FROM report_changes"),
        examples=tuple(Change(*row) for row in examples),
        unusual=tuple(unusual),
    )


def _days(database: Database, key: ExtractKey) -> list[Day]:
    """The extract and those before it, the oldest first, with one to spare for the first of all."""
    rows = database.execute(_ROWS_BY_EXTRACT, number=key.number, extracts=HISTORY + 1).fetchall()
    days = []
    for (number, kind, date), tables in groupby(rows, key=lambda row: row[:3]):
        counts = {(table.name, change): 0 for table in TABLES for change in (CLOSED, OPENED)}
        for *_, table, closed, opened in tables:
            if table is not None:
                counts[table, CLOSED], counts[table, OPENED] = closed, opened
        days.append(Day(ExtractKey(number, kind), date, counts))
    return days


def _past_kinds(database: Database, lists: Sequence[Path]) -> tuple[Counts, ...]:
    """Changed entities in each of these lists, by table and kind."""
    if not lists:
        return ()
    by_file: dict[str, dict[tuple[str, str], int]] = {str(file): {} for file in lists}
    rows = database.execute(_COUNT_IN_FILES, files=list(by_file)).fetchall()
    for file, table, kind, count in rows:
        by_file[file][table, kind] = count
    return tuple(by_file.values())


def _standouts(database: Database, query: str, least: int) -> list[Standout]:
    return [Standout(*row) for row in database.execute(query, least=least, most=MOST).fetchall()]


def find_anomalies(
    rows: Counts,
    past_rows: Sequence[Counts],
    kinds: Counts,
    past_kinds: Sequence[Counts],
    most_kinds: Sequence[Standout],
    most_entities: Sequence[Standout],
) -> list[Anomaly]:
    """The most unusual things of an extract, at most `MOST`.

    Numbers far from usual come first, then kinds that none of the extracts before had, then
    alternately the enterprises with the most kinds of changes and those with the most changed
    entities.

    Args:
        rows: rows closed and opened, by table.
        past_rows: those of the extracts before.
        kinds: changed entities, by table and kind.
        past_kinds: those of the extracts before, as far as they are known.
        most_kinds: the enterprises that changed in the most ways.
        most_entities: the enterprises of which the most entities changed.
    """
    far = [
        *_far_from_baseline(rows, past_rows, "rows"),
        *_far_from_baseline(kinds, past_kinds, "entities"),
    ]
    far.sort(key=lambda anomaly: -anomaly[0])
    anomalies = [anomaly for _, anomaly in far[:_MOST_COUNTS]]
    anomalies += list(_rare(kinds, past_kinds))[:_MOST_RARE]
    return [*anomalies, *_by_turns(most_kinds, most_entities)][:MOST]


def median_of(past: Sequence[Counts], name: tuple[str, str]) -> int | None:
    """The usual number; None while too few are known."""
    if len(past) < LEAST_PAST:
        return None
    return round(statistics.median(counts.get(name, 0) for counts in past))


def _far_from_baseline(
    counts: Counts, past: Sequence[Counts], unit: str
) -> Iterator[tuple[float, Anomaly]]:
    """Each number that is far from the median of those before, with its distance in logarithms."""
    for name, count in counts.items():
        usual = median_of(past, name)
        if usual is None or not is_anomalous(count, [before.get(name, 0) for before in past]):
            continue
        text = (
            f"{count:,} {unit}; usual is {usual:,}, the median of the {len(past)} extracts before"
        )
        distance = abs(math.log1p(count) - math.log1p(usual))
        yield distance, Anomaly(" ".join(name), text)


def _rare(kinds: Counts, past: Sequence[Counts]) -> Iterator[Anomaly]:
    if len(past) < LEAST_PAST:
        return
    for name, count in kinds.items():
        if count and not any(before.get(name) for before in past):
            entities = counted(count, "entity", "entities")
            yield Anomaly(" ".join(name), f"{entities}; none in the {len(past)} extracts before")


def _by_turns(
    most_kinds: Sequence[Standout], most_entities: Sequence[Standout]
) -> Iterator[Anomaly]:
    named: set[str] = set()
    for turn in range(MOST):
        for standouts, is_of_kinds in ((most_kinds, True), (most_entities, False)):
            if turn >= len(standouts) or standouts[turn].enterprise_number in named:
                continue
            one = standouts[turn]
            named.add(one.enterprise_number)
            how = (
                f"{one.kinds} kinds of changes at once"
                if is_of_kinds
                else f"{one.entities:,} of its entities changed"
            )
            yield Anomaly(f"{one.enterprise_number} {one.name}", f"{how}: {one.listed}")


def is_anomalous(count: int, past: Sequence[int]) -> bool:
    """Tells whether a number is far from what it was, by median and spread of the logarithms.

    One day in 30 may bring a thousand times as much, and must not make the next one usual. So the
    spread is the median distance from the median, which few days cannot move; of logarithms,
    because the numbers grow by factors.
    """
    if len(past) < LEAST_PAST:
        return False
    logarithms = [math.log1p(number) for number in past]
    median = statistics.median(logarithms)
    spread = 1.4826 * statistics.median(abs(number - median) for number in logarithms)
    distance = abs(math.log1p(count) - median)
    return (
        distance > max(SPREADS * spread, math.log(FACTOR))
        and abs(count - math.expm1(median)) >= LEAST_ROWS
    )


_ROWS_BY_EXTRACT = """
WITH newest AS (
    SELECT id, extract_number, extract_type, snapshot_date
    FROM import_jobs
    WHERE status = 'completed' AND extract_number <= $number
    ORDER BY extract_number DESC
    LIMIT $extracts
)
SELECT n.extract_number, n.extract_type, n.snapshot_date, b.table_name,
    coalesce(sum(b.rows_closed), 0)::BIGINT, coalesce(sum(b.rows_opened), 0)::BIGINT
FROM newest n
LEFT JOIN import_job_batches b ON b.job_id = n.id
GROUP BY ALL
ORDER BY n.extract_number
"""

_COUNT_IN_FILES = """
SELECT filename, table_name, kind, count(*)
FROM read_parquet($files, filename = true)
GROUP BY ALL
"""

_REJECTED_ROWS = """
SELECT file, line, column_name, reason
FROM rejected_row
WHERE extract = $key
ORDER BY file, line
LIMIT $most
"""

_FIND_EXAMPLES = """
SELECT table_name, kind, entity_number, enterprise_number, name, before, after
FROM report_changes
WHERE rowid IN (
    SELECT unnest(min_by(rowid, entity_number, $most))
    FROM report_changes
    GROUP BY table_name, kind)
ORDER BY rowid
"""

_KEY = ENTERPRISE.key
_KIND = "table_name || ' ' || kind"
_BY_ENTERPRISE = f"""
SELECT {_KEY}, coalesce(max(name) FILTER (entity_number = {_KEY}), {_KEY}),
    count(DISTINCT {_KIND}) AS kinds, count(DISTINCT entity_number) AS entities,
    string_agg(DISTINCT {_KIND}, ', ' ORDER BY {_KIND})
FROM report_changes
WHERE {_KEY} IS NOT NULL"""

_MOST_KINDS = f"""
{_BY_ENTERPRISE} AND kind NOT IN ('{NEW}', '{STOPPED}')
GROUP BY {_KEY}
HAVING kinds >= $least
ORDER BY kinds DESC, entities DESC, {_KEY}
LIMIT $most
"""
"""The enterprises with the most kinds of changes at once, other than new and stopped."""

_MOST_ENTITIES = f"""
{_BY_ENTERPRISE}
GROUP BY {_KEY}
HAVING entities >= $least
ORDER BY entities DESC, kinds DESC, {_KEY}
LIMIT $most
"""
"""The enterprises with the most changed entities: itself, establishment units and branches."""
