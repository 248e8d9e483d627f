"""The change report: what an extract changed, for people, made from the published register alone.

It is a directory, `reports/<extract key>`, with `report.md`, `plot.png` and `changes.parquet`. Each
file is complete or absent; the page is written last. No Dagster.
"""

import datetime
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.tables import ENTERPRISE, TABLES
from kbo_pipeline.core.text import counted, cut, one_line
from kbo_pipeline.read.anomalies import MOST, Anomaly, Counts, Standout, find_anomalies, median_of
from kbo_pipeline.read.changes import Change, published_key
from kbo_pipeline.read.changes_sql import CHANGED_ENTITIES
from kbo_pipeline.read.kinds import KINDS, NEW, STOPPED
from kbo_pipeline.read.plot import Bars, draw
from kbo_pipeline.read.published import open_published

PAGE_FILE, PLOT_FILE, CHANGES_FILE = "report.md", "plot.png", "changes.parquet"
"""The files of a report: the page, its plot, the list of all changes."""

HISTORY = 30
"""An extract is compared with so many before it."""

EXAMPLES = 5
"""So many changes of each kind are on the page."""

REJECTED = 20
"""So many records that are set aside are on the page."""

_LEAST_KINDS, _LEAST_ENTITIES = 2, 3
_CLOSED, _OPENED = "closed", "opened"

_LONGEST = 60
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!])")

_CREATE_CHANGES = f"CREATE OR REPLACE TEMP TABLE report_changes AS {CHANGED_ENTITIES}"

_DROP_CHANGES = "DROP TABLE IF EXISTS temp.report_changes"

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

_FIRST_EXTRACT = "SELECT min(extract_number) FROM import_jobs WHERE status = 'completed'"

_COUNT_BY_KIND = "SELECT table_name, kind, count(*) FROM report_changes GROUP BY ALL"

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

_COUNT_REJECTED = "SELECT count(*) FROM rejected_row WHERE extract = $key"

_COUNT_ENTITIES = "SELECT count(DISTINCT entity_number) FROM report_changes"

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


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a change report is; the plot and the list are None for the first extract.

    Attributes:
        page, plot, changes: `report.md`, `plot.png`, `changes.parquet`.
    """

    page: Path
    plot: Path | None
    changes: Path | None


def report_directory(settings: Settings, key: ExtractKey) -> Path:
    """Where the report of an extract is."""
    return settings.reports_dir / str(key)


def remove_report(settings: Settings, key: ExtractKey) -> None:
    """Removes the report of an extract that is undone, or too old; without effect on none."""
    if report_directory(settings, key).exists():
        shutil.rmtree(report_directory(settings, key))


def make_report(
    connection: duckdb.DuckDBPyConnection, settings: Settings, key: ExtractKey
) -> tuple[ChangeReport, ReportFiles]:
    """Makes the report of a published extract, however many were published since.

    One process at a time may make that of an extract: callers hold a claim on it.

    Args:
        connection: an in-memory DuckDB.
        settings: say where the published file is, and where reports go.
        key: the extract.

    Raises:
        NotReadyError: there is no published file.
        RegisterError: it is no register.
        StorageError: somebody has it open for writing.
        NotFoundError: the extract is not published.
    """
    directory = report_directory(settings, key)
    with open_published(connection, settings.database):
        published_key(connection, str(key))
        lists = {file.parent.name: file for file in settings.reports_dir.glob(f"*/{CHANGES_FILE}")}
        report = read_report(Database(connection), key, lists)
        plot = changes = None
        if not report.is_first:
            changes = directory / CHANGES_FILE
            with replace_atomically(changes) as temporary:
                connection.execute(
                    f"COPY report_changes\nTO {literal(temporary)}\n"
                    "(FORMAT parquet, COMPRESSION zstd)"
                )
            plot = directory / PLOT_FILE
            picture = draw(bars_of(report), settings.work_dir / "matplotlib")
            with replace_atomically(plot) as temporary:
                temporary.write_bytes(picture)
        connection.execute(_DROP_CHANGES)
    with replace_atomically(directory / PAGE_FILE) as temporary:
        temporary.write_text(page(report, PLOT_FILE), encoding="utf-8")
    return report, ReportFiles(directory / PAGE_FILE, plot, changes)


def bars_of(report: ChangeReport) -> Bars:
    """What the plot of a report shows."""
    days = [*report.before, report.day]
    return Bars(
        title=f"{report.day.key} against extracts before: {len(report.before)}"
        f" (KBO Open Data, {report.day.snapshot_date})",
        labels=[str(day.key.number) for day in days],
        totals=[day.total for day in days],
        tables={table.name: [day.of_table(table.name) for day in days] for table in TABLES},
    )


def read_report(database: Database, key: ExtractKey, lists: Mapping[str, Path]) -> ChangeReport:
    """Reads what an extract changed; its changes are in the table `report_changes` afterwards.

    Args:
        database: has the published register as its default database.
        key: a published extract.
        lists: the lists of other reports, by extract key.
    """
    first = database.count(_FIRST_EXTRACT)
    days = _days(database, key)
    if key.number == first:
        return ChangeReport(days[-1], (), True, {}, (), 0, (), (), _read_rejected(database, key))
    before = tuple(day for day in days[:-1] if day.key.number != first)
    database.execute(_CREATE_CHANGES, number=key.number)
    rows = database.execute(_COUNT_BY_KIND).fetchall()
    counts = {(table, kind): count for table, kind, count in rows}
    kinds = {(k.table.name, k.name): counts.get((k.table.name, k.name), 0) for k in KINDS}
    past_kinds = _past_kinds(database, [lists[str(d.key)] for d in before if str(d.key) in lists])
    unusual = find_anomalies(
        days[-1].rows,
        [day.rows for day in before],
        kinds,
        past_kinds,
        _standouts(database, _MOST_KINDS, _LEAST_KINDS),
        _standouts(database, _MOST_ENTITIES, _LEAST_ENTITIES),
    )
    examples = database.execute(_FIND_EXAMPLES, most=EXAMPLES).fetchall()
    return ChangeReport(
        days[-1],
        before,
        False,
        kinds,
        past_kinds,
        database.count(_COUNT_ENTITIES),
        tuple(Change(*row) for row in examples),
        tuple(unusual),
        _read_rejected(database, key),
    )


def _read_rejected(database: Database, key: ExtractKey) -> Rejected:
    rows = database.execute(_REJECTED_ROWS, key=str(key), most=REJECTED).fetchall()
    return Rejected(database.count(_COUNT_REJECTED, key=str(key)), tuple(rows))


def _days(database: Database, key: ExtractKey) -> list[Day]:
    """The extract and those before it, the oldest first, with one to spare for the first of all."""
    rows = database.execute(_ROWS_BY_EXTRACT, number=key.number, extracts=HISTORY + 1).fetchall()
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
    by_file: dict[str, dict[tuple[str, str], int]] = {str(file): {} for file in lists}
    rows = database.execute(_COUNT_IN_FILES, files=list(by_file)).fetchall()
    for file, table, kind, count in rows:
        by_file[file][table, kind] = count
    return tuple(by_file.values())


def _standouts(database: Database, query: str, least: int) -> list[Standout]:
    parameters: Mapping[str, Any] = {"least": least, "most": MOST}
    return [Standout(*row) for row in database.execute(query, **parameters).fetchall()]


def page(report: ChangeReport, plot: str) -> str:
    """The page.

    Args:
        report: what it tells.
        plot: address of the plot, from where the page is.
    """
    day = report.day
    parts = [
        f"# {day.key}: what changed",
        f"Source: KBO Open Data, FPS Economy; data of {day.snapshot_date}.",
    ]
    if report.is_first:
        parts += [
            "This is the first extract of the register: all of it is new, so nothing is listed.",
            "\n".join(_rows_table(report)),
            *_rejected(report),
        ]
        return "\n\n".join(parts) + "\n"
    parts += [
        f"{report.entities:,} entities changed, in {report.changes:,} ways; {day.total:,} rows were"
        " closed or opened.",
        f"![The extract against those before it]({plot})",
        "## By kind",
        "\n".join(_kinds_table(report)) if report.changes else "Nothing changed.",
        "## By table",
        "\n".join(_rows_table(report)),
        *_rejected(report),
        "## Unusual",
        "\n".join(_unusual(report)),
    ]
    if report.examples:
        parts += [f"## Examples, at most {EXAMPLES} of each kind", "\n".join(_examples(report))]
        parts += ["All of them are in `changes.parquet`, beside `report.md`."]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """A text as it stands in a line or cell of Markdown, shortened."""
    return _SPECIAL.sub(r"\\\1", cut(one_line(text), _LONGEST))


def _kinds_table(report: ChangeReport) -> Iterator[str]:
    yield "| table | kind | entities | usual |"
    yield "|---|---|---:|---:|"
    for name, count in report.kinds.items():
        if count:
            table, kind = name
            usual = median_of(report.past_kinds, name)
            yield f"| {table} | {kind} | {count:,} | {'' if usual is None else f'{usual:,}'} |"


def _rows_table(report: ChangeReport) -> Iterator[str]:
    yield "| table | rows closed | usual | rows opened | usual |"
    yield "|---|---:|---:|---:|---:|"
    past = [day.rows for day in report.before]
    for table in TABLES:
        cells = [table.name]
        for what in ("closed", "opened"):
            usual = median_of(past, (table.name, what))
            cells += [f"{report.day.rows[table.name, what]:,}"]
            cells += ["" if usual is None else f"{usual:,}"]
        yield f"| {' | '.join(cells)} |"


def _rejected(report: ChangeReport) -> Iterator[str]:
    rejected = report.rejected
    if not rejected.count:
        return
    yield "## Set aside"
    yield (
        f"{counted(rejected.count, 'row')} of the ZIP could not be read. What stood there is not in"
        " the tables of the register, but in its table `rejected_row`. The first:"
    )
    lines = ["| file | line | column | reason |", "|---|---:|---|---|"]
    for file, line, column, reason in rejected.first:
        shown = escaped(file), f"{line:,}", column or "", escaped(reason)
        lines.append(f"| {' | '.join(shown)} |")
    yield "\n".join(lines)


def _unusual(report: ChangeReport) -> Iterator[str]:
    if not report.unusual:
        yield "Nothing stands out."
    for place, anomaly in enumerate(report.unusual, start=1):
        yield f"{place}. **{escaped(anomaly.subject)}**: {anomaly.text}."


def _examples(report: ChangeReport) -> Iterator[str]:
    yield "| table | kind | number | name | before | after |"
    yield "|---|---|---|---|---|---|"
    for change in report.examples:
        texts = (change.entity_number, change.name, change.before or "", change.after or "")
        yield f"| {change.table} | {change.kind} | {' | '.join(map(escaped, texts))} |"
