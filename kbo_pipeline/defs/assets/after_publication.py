"""The assets made of a published extract: the report on it, an export, a comparison with a Full."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.text import counted
from kbo_pipeline.defs.metadata import (
    DRIFT_COLUMNS,
    OWNERS,
    PREVIEW_ROWS,
    export_metadata,
    preview,
    report_metadata,
    shown_table,
    tags,
    verification_metadata,
)
from kbo_pipeline.defs.step import RETRIES, step_guard
from kbo_pipeline.fetch.zips import kept_zip
from kbo_pipeline.operate.runs.claims import claimed_partition, extract_of_partition
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.operate.runs.progress import PUBLISHED
from kbo_pipeline.publish.verification import Verification, verify
from kbo_pipeline.read.export import write_export
from kbo_pipeline.read.report import (
    CHANGES_FILE,
    PAGE_FILE,
    PLOT_FILE,
    make_report,
    report_directory,
)


@dg.asset(
    deps=[PUBLISHED],
    partitions_def=kbo_extracts,
    group_name="publish",
    kinds={"markdown", "parquet"},
    owners=OWNERS,
    tags=tags("publish"),
    metadata=report_metadata(),
    retry_policy=RETRIES,
)
def change_report(
    context: dg.AssetExecutionContext, duckdb: DuckDBResource
) -> dg.MaterializeResult[None]:
    """What an extract changed, as a page to read: by kind and table, against the 30 before it.

    New and stopped enterprises, moves, new names, bankruptcies; a plot, the most unusual changes,
    and a Parquet file that lists all changed entities. It is made from the published file, so
    readers already have the extract, even if the report fails.
    """
    with (
        step_guard(context) as settings,
        claimed_partition(context, settings) as key,
        duckdb.get_connection() as connection,
    ):
        started = time.monotonic()
        report = make_report(connection, settings, key)
        seconds = round(time.monotonic() - started, 3)
        page, plot, changes = (
            report_directory(settings, key) / name for name in (PAGE_FILE, PLOT_FILE, CHANGES_FILE)
        )
        changed = counted(report.entities, "entity", "entities")
        what = "all of it is new" if report.is_first else f"{changed} changed"
        context.log.info(f"{key}: {what}; see {page}")
        list_metadata: dict[str, Any] = {}
        if not report.is_first:
            list_metadata = {
                "dagster/row_count": report.changes,
                "bytes": changes.stat().st_size,
                "changes": dg.MetadataValue.path(str(changes)),
                "preview": preview(
                    connection.execute(f"FROM {literal(changes)} LIMIT {PREVIEW_ROWS}")
                ),
            }
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.md(_embedded(page, None if report.is_first else plot)),
                "file": dg.MetadataValue.path(str(page)),
                "entities": report.entities,
                "rows_changed": report.day.total,
                "seconds": seconds,
                **list_metadata,
                **{f"changes/{t}/{kind}": count for (t, kind), count in report.kinds.items()},
            }
        )


def _embedded(page: Path, plot: Path | None) -> str:
    """The page with its plot inside: the UI shows no file beside it."""
    text = page.read_text(encoding="utf-8")
    if plot is None:
        return text
    address = f"data:image/png;base64,{base64.b64encode(plot.read_bytes()).decode()}"
    return text.replace(f"]({PLOT_FILE})", f"]({address})", 1)


@dg.asset(
    deps=[PUBLISHED],
    partitions_def=kbo_extracts,
    group_name="export",
    kinds={"parquet"},
    owners=OWNERS,
    tags=tags("publish"),
    metadata=export_metadata(),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=5, jitter=dg.Jitter.PLUS_MINUS),
)
def parquet_export(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """The current tables and `enterprise_profile` as Parquet: sorted, compressed, with a manifest.

    The directory `exports/current` in the data directory holds a whole export or does not exist.
    Only the newest published extract can be exported. `KBO_PRIVACY` decides whether natural
    persons are in it.
    """
    with step_guard(context) as settings:
        export = write_export(
            settings,
            settings.export_dir,
            extract=str(extract_of_partition(context)),
            report=lambda name, done, total: context.log.info(f"{name}: {done + 1} of {total}"),
        )
        return dg.MaterializeResult(
            metadata={
                "directory": dg.MetadataValue.path(str(settings.export_dir)),
                "source": export.source,
                "privacy": export.privacy,
                "bytes": export.bytes,
                "files": shown_table(
                    ("file", "rows", "bytes", "sha256"),
                    [(t.file, t.rows, t.bytes, t.sha256) for t in export.tables.values()],
                ),
                **{f"rows/{name}": table.rows for name, table in export.tables.items()},
            }
        )


CHECK = "register_equals_full"


@dg.asset(
    deps=[PUBLISHED],
    partitions_def=kbo_extracts,
    group_name="publish",
    kinds={"duckdb"},
    owners=OWNERS,
    tags=tags("publish"),
    metadata=verification_metadata(),
    check_specs=[
        dg.AssetCheckSpec(
            CHECK,
            asset="full_verification",
            description="The register, as it was at the extract, is row for row the Full of the"
            " same number.",
        )
    ],
)
def full_verification(
    context: dg.AssetExecutionContext,
) -> Iterator[dg.MaterializeResult[None]]:
    """Compares the register, as it was at an extract, with the Full of the same number.

    All rows of all tables are compared, in both directions. The Full has to be in the downloads
    directory: drop it into the inbox, or run `kbo fetch`. The comparison then starts by itself,
    once.
    """
    with step_guard(context) as settings:
        key = extract_of_partition(context)
        zip_file = kept_zip(settings, ExtractKey(key.number, "full"))
        logged: set[str] = set()

        def report(name: str, done: int, total: int) -> None:
            if name not in logged:
                context.log.info(f"{key}: comparing {name}, {done} of {total} parts done")
                logged.add(name)

        result = verify(settings, zip_file, report=report)
        (context.log.info if result.is_equal else context.log.warning)(str(result))
        yield dg.MaterializeResult(
            metadata={
                "full": zip_file.name,
                "drift": result.drift,
                "tables": shown_table(
                    DRIFT_COLUMNS,
                    [
                        (name, *(getattr(drift, column) for column in DRIFT_COLUMNS[1:]))
                        for name, drift in result.tables.items()
                    ],
                ),
            },
            check_results=[_check_result(result)],
        )


def _check_result(result: Verification) -> dg.AssetCheckResult:
    rows = [
        (name, side, str(row))
        for name, drift in result.tables.items()
        for side, rows in drift.samples.items()
        for row in rows
    ]
    sample = {"sample": shown_table(("table", "only_in", "row"), rows)} if rows else {}
    return dg.AssetCheckResult(
        check_name=CHECK,
        passed=result.is_equal,
        severity=dg.AssetCheckSeverity.ERROR,
        description=str(result),
        metadata={"drift": result.drift, **sample},
    )
