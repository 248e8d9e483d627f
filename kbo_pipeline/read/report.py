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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.core.text import counted, cut, one_line
from kbo_pipeline.read.changes import published_key
from kbo_pipeline.read.comparison import (
    CLOSED,
    EXAMPLES,
    LEAST_PAST,
    OPENED,
    ChangeReport,
    median_of,
    read_report,
)
from kbo_pipeline.read.published import open_published
from kbo_pipeline.read.types import SOURCE

PAGE_FILE, PLOT_FILE, CHANGES_FILE = "report.md", "plot.png", "changes.parquet"
"""The files of a report: the page, its plot, the list of all changes."""

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
        published_key(connection, str(key))
        lists = {file.parent.name: file for file in settings.reports_dir.glob(f"*/{CHANGES_FILE}")}
        report = read_report(Database(connection), key, lists)
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
        f"{counted(report.rejected_count, 'row')} of the ZIP could not be read. What stood there is"
        " not in the tables of the register, but in its table `rejected_row`. The first:",
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
    return Bars(
        title=f"{report.day.key} against extracts before: {len(report.before)}"
        f" (KBO Open Data, {report.day.snapshot_date})",
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
