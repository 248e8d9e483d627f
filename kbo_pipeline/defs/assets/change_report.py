"""The asset `change_report`: a page on what each extract changed, made after its publication."""

import base64
import time
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.sql import literal
from kbo_pipeline.defs.metadata import OWNERS, PREVIEW_ROWS, preview, report_metadata, tags
from kbo_pipeline.defs.step import step_guard
from kbo_pipeline.operate.runs.claims import claimed_partition
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.operate.runs.progress import PUBLISHED
from kbo_pipeline.read.report import PLOT_FILE, make_report


@dg.asset(
    deps=[PUBLISHED],
    partitions_def=kbo_extracts,
    group_name="publish",
    kinds={"markdown", "parquet"},
    owners=list(OWNERS),
    tags=tags("publish"),
    metadata=report_metadata(),
    retry_policy=dg.RetryPolicy(
        max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
    ),
)
def change_report(
    context: dg.AssetExecutionContext, duckdb: DuckDBResource
) -> dg.MaterializeResult[None]:
    """What an extract changed, as a page for people: by kind and table, against the 30 before it.

    New and stopped enterprises, moves, new names, bankruptcies; a plot, the most unusual things,
    and a list of all changed entities as Parquet. Made from the published file; readers have the
    extract before this begins, and whatever becomes of it.
    """
    with (
        step_guard(context) as settings,
        claimed_partition(context, settings) as key,
        duckdb.get_connection() as connection,
    ):
        started = time.monotonic()
        report, files = make_report(connection, settings, key)
        seconds = round(time.monotonic() - started, 3)
        context.log.info(f"{key}: {report.entities} entities changed; see {files.page}")
        listed: dict[str, Any] = {}
        if files.changes is not None:
            listed = {
                "dagster/row_count": report.changes,
                "bytes": files.changes.stat().st_size,
                "changes": dg.MetadataValue.path(str(files.changes)),
                "preview": preview(
                    connection.execute(f"FROM {literal(files.changes)} LIMIT {PREVIEW_ROWS}")
                ),
            }
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.md(_shown(files.page, files.plot)),
                "file": dg.MetadataValue.path(str(files.page)),
                "entities": report.entities,
                "rows_changed": report.day.total,
                "seconds": seconds,
                **listed,
                **{f"changes/{t}/{kind}": count for (t, kind), count in report.kinds.items()},
            }
        )


def _shown(page: Path, plot: Path | None) -> str:
    """The page with the plot in it: the UI shows no file beside it."""
    text = page.read_text(encoding="utf-8")
    if plot is None:
        return text
    address = f"data:image/png;base64,{base64.b64encode(plot.read_bytes()).decode()}"
    return text.replace(f"]({PLOT_FILE})", f"]({address})", 1)
