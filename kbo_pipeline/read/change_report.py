"""The change report: what an extract changed, for people, made from the published file alone.

It is a directory, `reports/<extract key>`, with `report.md`, `plot.png` and `changes.parquet`. Each
file is complete or absent; the page comes last. No Dagster.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import duckdb

from kbo_pipeline.core.database import Database, literal
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.read import report_sql
from kbo_pipeline.read.changes import published_key
from kbo_pipeline.read.plot import Bars, draw
from kbo_pipeline.read.published import open_published
from kbo_pipeline.read.report import ChangeReport, read_report
from kbo_pipeline.read.report_page import page

PAGE_FILE, PLOT_FILE, CHANGES_FILE = "report.md", "plot.png", "changes.parquet"
"""The files of a report: the page, its plot, the list of all changes."""


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
                    f"COPY report_changes TO {literal(temporary)}"
                    " (FORMAT parquet, COMPRESSION zstd)"
                )
            plot = directory / PLOT_FILE
            picture = draw(bars_of(report), settings.work_dir / "matplotlib")
            with replace_atomically(plot) as temporary:
                temporary.write_bytes(picture)
        connection.execute(report_sql.DROP_CHANGES)
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
