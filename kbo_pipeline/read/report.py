"""The change report: what an extract changed, as a page, made from the published register alone.

It is a directory, `reports/<extract key>`, with `report.md`, `plot.png` and `changes.parquet`. Each
file is complete or absent; the page is written last.
"""

import io
import logging
import os
import re
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
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
from kbo_pipeline.read.changes import CHANGED_ENTITIES, KINDS, NEW, STOPPED
from kbo_pipeline.read.comparison import (
    CLOSED,
    LEAST_PAST,
    MOST,
    OPENED,
    ChangeReport,
    Counts,
    Day,
    Standout,
    find_anomalies,
    median_of,
)
from kbo_pipeline.read.published import open_published
from kbo_pipeline.read.state_sql import EXTRACTS
from kbo_pipeline.read.types import SOURCE, Change, PublishedExtract, named

PAGE_FILE, PLOT_FILE, CHANGES_FILE = "report.md", "plot.png", "changes.parquet"
"""The files of a report: the page, its plot, the list of all changes."""

HISTORY = 30
"""Extracts that one is compared with."""

EXAMPLES = 5
"""Changes of each kind on the page."""

REJECTED = 20
"""Records that are set aside on the page."""

_LEAST_KINDS, _LEAST_ENTITIES = 2, 3

_THIS, _PAST, _USUAL = "#d4572a", "#9db4c8", "#333333"
_INCHES, _DOTS = (9.0, 3.6), 100
_COLOURS = 48  # a palette makes the file a third as large

_LONGEST = 60
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!])")


def report_directory(settings: Settings, key: ExtractKey) -> Path:
    """Where the report of an extract is."""
    return settings.reports_dir / str(key)


def remove_report(settings: Settings, key: ExtractKey) -> None:
    """Removes the report of an extract, if there is one."""
    if report_directory(settings, key).exists():
        shutil.rmtree(report_directory(settings, key))


def make_report(
    connection: duckdb.DuckDBPyConnection, settings: Settings, key: ExtractKey
) -> ChangeReport:
    """Makes the report of a published extract, however many were published since.

    Only one process at a time may make that of an extract: callers hold a claim on it.

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
        extracts = connection.execute(EXTRACTS).fetchall()
        named([PublishedExtract(*row) for row in extracts], str(key))  # or it is not published
        lists = {file.parent.name: file for file in settings.reports_dir.glob(f"*/{CHANGES_FILE}")}
        report = _read_report(Database(connection), key, lists)
        if not report.is_first:
            with replace_atomically(directory / CHANGES_FILE) as temporary:
                connection.execute(
                    f"COPY report_changes\nTO {literal(temporary)}\n"
                    "(FORMAT parquet, COMPRESSION zstd)"
                )
            picture = draw(_bars(report), settings.work_dir / "matplotlib")
            with replace_atomically(directory / PLOT_FILE) as temporary:
                temporary.write_bytes(picture)
        connection.execute("DROP TABLE IF EXISTS temp.report_changes")
    with replace_atomically(directory / PAGE_FILE) as temporary:
        temporary.write_text(_page(report), encoding="utf-8")
    return report


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


def _read_report(database: Database, key: ExtractKey, lists: Mapping[str, Path]) -> ChangeReport:
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


def _page(report: ChangeReport) -> str:
    day = report.day
    parts = [f"# {day.key}: what changed", f"{SOURCE}{day.snapshot_date}."]
    if report.is_first:
        parts += [
            "This is the first extract of the register: all of it is new, so nothing is listed.",
            _rows_table(report),
            *_rejected(report),
        ]
        return "\n\n".join(parts) + "\n"
    parts += [
        f"{report.entities:,} entities changed, in {report.changes:,} ways; {day.total:,} rows were"
        " closed or opened.",
        f"![The extract against those before it]({PLOT_FILE})",
        "## By kind",
        _kinds_table(report) if report.changes else "Nothing changed.",
        "## By table",
        _rows_table(report),
        *_rejected(report),
        "## Unusual",
        _unusual(report),
    ]
    if report.examples:
        parts += [
            f"## Examples, at most {EXAMPLES} of each kind",
            _examples(report),
            f"All of them are in `{CHANGES_FILE}`, beside `{PAGE_FILE}`.",
        ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """A text as it stands in a line or cell of Markdown, shortened."""
    return _SPECIAL.sub(r"\\\1", cut(one_line(text), _LONGEST))


def _table(head: str, rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _kinds_table(report: ChangeReport) -> str:
    return _table(
        "| table | kind | entities | usual |\n|---|---|---:|---:|",
        [
            (*name, _number(count), _number(median_of(report.past_kinds, name)))
            for name, count in report.kinds.items()
            if count
        ],
    )


def _rows_table(report: ChangeReport) -> str:
    past = [day.rows for day in report.before]
    rows = []
    for table in TABLES:
        row = [table.name]
        for name in ((table.name, CLOSED), (table.name, OPENED)):
            row += [_number(report.day.rows[name]), _number(median_of(past, name))]
        rows.append(row)
    return _table(
        "| table | rows closed | usual | rows opened | usual |\n|---|---:|---:|---:|---:|", rows
    )


def _rejected(report: ChangeReport) -> list[str]:
    if not report.rejected_count:
        return []
    return [
        "## Set aside",
        f"{counted(report.rejected_count, 'row')} of the ZIP could not be read; see the table"
        " `rejected_row` of the register. The first:",
        _table(
            "| file | line | column | reason |\n|---|---:|---|---|",
            [
                (escaped(file), f"{line:,}", column or "", escaped(reason))
                for file, line, column, reason in report.rejected
            ],
        ),
    ]


def _unusual(report: ChangeReport) -> str:
    lines = (
        f"{place}. **{escaped(anomaly.subject)}**: {anomaly.text}."
        for place, anomaly in enumerate(report.unusual, start=1)
    )
    return "\n".join(lines) or "Nothing stands out."


def _examples(report: ChangeReport) -> str:
    return _table(
        "| table | kind | number | name | before | after |\n|---|---|---|---|---|---|",
        [
            (
                c.table,
                c.kind,
                *map(escaped, (c.entity_number, c.name, c.before or "", c.after or "")),
            )
            for c in report.examples
        ],
    )


@dataclass(frozen=True, slots=True)
class Bars:
    """What the plot shows.

    Attributes:
        title: of the plot.
        labels: of the extracts, the oldest first; the report is about the last one.
        totals: rows that each of them closed or opened.
        tables: the same of each table, by its name.
    """

    title: str
    labels: Sequence[str]
    totals: Sequence[int]
    tables: dict[str, Sequence[int]]

    @property
    def usual(self) -> float | None:
        """The median of the extracts before; None while too few are known."""
        past = self.totals[:-1]
        return statistics.median(past) if len(past) >= LEAST_PAST else None


def _bars(report: ChangeReport) -> Bars:
    days = [*report.before, report.day]
    others = f" and {counted(len(report.before), 'extract')} before it" if report.before else ""
    return Bars(
        title=f"{report.day.key}{others} (KBO Open Data, {report.day.snapshot_date})",
        labels=[str(day.key.number) for day in days],
        totals=[day.total for day in days],
        tables={table.name: [day.of_table(table.name) for day in days] for table in TABLES},
    )


def draw(bars: Bars, cache: Path) -> bytes:
    """The plot as a PNG of some 20 kB.

    Args:
        bars: what is drawn.
        cache: directory where matplotlib keeps its list of fonts.
    """
    os.environ.setdefault("MPLCONFIGDIR", str(cache))  # it would write into the user's home
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    # Imported here: it takes 1 s of processor time.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    figure.suptitle(bars.title, fontsize=11)
    _draw_totals(left, bars)
    _draw_tables(right, bars)
    canvas.draw()
    return _compressed(canvas.get_width_height(), canvas.buffer_rgba())


def _draw_totals(axes: Any, bars: Bars) -> None:
    last = len(bars.totals) - 1
    colours = [_PAST] * last + [_THIS]
    axes.bar(range(last + 1), bars.totals, color=colours)
    title = "rows closed or opened"
    if bars.usual is not None:
        title += "; dashed: usual"
        axes.axhline(bars.usual, color=_USUAL, linewidth=0.8, linestyle="--")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    shown = sorted({0, last // 2, last})
    axes.set_xticks(shown, [bars.labels[i] for i in shown], fontsize=8)
    axes.set_title(title, fontsize=9)
    _clean(axes)


def _draw_tables(axes: Any, bars: Bars) -> None:
    names = list(bars.tables)
    for place, name in enumerate(names):
        *past, now = bars.tables[name]
        axes.scatter(past, [place] * len(past), color=_PAST, s=14)
        axes.scatter([now], [place], color=_THIS, s=36, zorder=3)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(left=-1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title("by table, each dot an extract", fontsize=9)
    _clean(axes)


def _clean(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _compressed(size: tuple[int, int], pixels: Any) -> bytes:
    from PIL import Image

    image = Image.frombuffer("RGBA", size, pixels).convert("RGB").quantize(_COLOURS)
    written = io.BytesIO()
    image.save(written, format="PNG", optimize=True)
    return written.getvalue()
