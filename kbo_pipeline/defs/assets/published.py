"""The assets `code` and `published_extract`, and what is made of a published extract.

The asset checks are evaluated when publishing, and by hand at any time. The change report, the
search index, the Parquet files and the comparison with a Full come after, and stop nothing.
"""

import base64
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.tables import CODE, TABLES, Table
from kbo_pipeline.core.text import counted
from kbo_pipeline.defs.assets.register import lineage_only
from kbo_pipeline.defs.metadata import (
    DRIFT_COLUMNS,
    OWNERS,
    PREVIEW_ROWS,
    change_metadata,
    export_metadata,
    preview,
    published_metadata,
    register_metadata,
    report_metadata,
    search_metadata,
    shown_table,
    tags,
    verification_metadata,
)
from kbo_pipeline.defs.step import AT_IMPORT, RETRIES, give_way, step_guard
from kbo_pipeline.operate.runs.claims import WRITER_POOL, claimed_partition, extract_of_partition
from kbo_pipeline.operate.runs.live import forget_live, reporting, stages_metadata
from kbo_pipeline.operate.runs.partitions import kbo_extracts, staging_asset
from kbo_pipeline.operate.runs.progress import ACCEPT_LOSS_TAG, PUBLISHED, ledger_metadata
from kbo_pipeline.publish.checks import CHECKS
from kbo_pipeline.publish.publish import CheckResult, Publication, check_published, publish
from kbo_pipeline.publish.verification import Verification, prove
from kbo_pipeline.read.export import write_export_and_deltas
from kbo_pipeline.read.index import build_index
from kbo_pipeline.read.published import open_published, published_state_of
from kbo_pipeline.read.report import (
    CHANGES_FILE,
    PAGE_FILE,
    PLOT_FILE,
    make_report,
    report_directory,
)

FULL_CHECK = "register_equals_full"


@dg.multi_asset(
    name="publish",
    specs=[
        dg.AssetSpec(
            CODE.name,
            deps=[staging_asset(CODE)],
            partitions_def=kbo_extracts,
            group_name="register",
            kinds={"duckdb"},
            owners=OWNERS,
            tags=tags("apply", CODE),
            description=f"{CODE.description} Its history is kept like that of the other tables.",
            metadata=register_metadata(CODE, staging_asset(CODE)),
        ),
        dg.AssetSpec(
            PUBLISHED,
            deps=[
                CODE.name,
                *(dg.AssetDep(table.name, partition_mapping=lineage_only) for table in TABLES),
            ],
            partitions_def=kbo_extracts,
            group_name="publish",
            kinds={"duckdb"},
            owners=OWNERS,
            tags=tags("publish"),
            metadata=published_metadata(),
            freshness_policy=dg.FreshnessPolicy.time_window(
                fail_window=timedelta(hours=AT_IMPORT.stale_hours)
            ),
            description="The register as readers see it: one DuckDB file, replaced whole at each"
            " publication. Materialized when all batches of an extract are applied, primary names"
            " are resolved and the file is in its place.",
        ),
    ],
    pool=WRITER_POOL,
    retry_policy=RETRIES,
)
def publish_assets(
    context: dg.AssetExecutionContext, duckdb: DuckDBResource
) -> Iterator[dg.MaterializeResult[None]]:
    """Replaces `code`, resolves names, checks, and puts the published file in its place."""
    accepted_by = context.run.tags.get(ACCEPT_LOSS_TAG)
    accepted: dict[str, str] = {}
    with (
        step_guard(context) as settings,
        claimed_partition(context, settings) as key,
        duckdb.get_connection() as connection,
        reporting(settings, key, context.run, "publishing") as report_progress,
    ):

        def report_checks(results: Sequence[CheckResult]) -> None:
            for result in results:
                context.log_event(evaluated(key, result))  # is stored here and now
                if not result.passed:
                    context.log.warning(f"{key}: check {result.check.name}: {result}")
                if accepted_by is not None and result.is_accepted:
                    accepted["loss_accepted_by"] = accepted_by

        started = time.monotonic()
        publication = publish(
            connection,
            settings,
            key,
            accept_loss=accepted_by is not None,
            report_checks=report_checks,
            report_progress=report_progress,
        )
        again = "already published: nothing to do" if publication.already_published else "published"
        context.log.info(f"{key}: {again}")
        seconds = round(time.monotonic() - started, 3)
        with open_published(connection, settings.database):
            codes = preview(connection.execute(f'FROM "current".{CODE.name} LIMIT {PREVIEW_ROWS}'))
            ((day,),) = connection.execute(_DAY, {"key": str(key)}).fetchall()
        yield dg.MaterializeResult(
            asset_key=CODE.name,
            metadata={
                "dagster/row_count": publication.row_counts[CODE.name],
                **change_metadata(publication.code),
                "preview": codes,
            },
        )
        yield dg.MaterializeResult(
            asset_key=PUBLISHED,
            metadata={
                **_where(settings.database),
                "seconds": seconds,
                "snapshot_date": str(day),
                **({} if publication.already_published else stages_metadata(report_progress.spent)),
                **accepted,
                **_counts(publication),
            },
        )
    forget_live(settings, key)


_DAY = "SELECT snapshot_date FROM import_jobs WHERE id = $key"


def _counts(publication: Publication) -> dict[str, Any]:
    """What a publication has in each table and has changed there, and its entry of the ledger."""
    rows, changed = publication.row_counts, publication.rows_changed
    return {
        "names_resolved": publication.names_resolved,
        "rows_changed": sum(changed.values()),
        **ledger_metadata(publication.entry),
        **{f"rows/{name}": count for name, count in rows.items()},
        **{f"rows_changed/{name}": count for name, count in changed.items()},
        "preview": shown_table(
            ("table", "rows", "rows_changed"),
            [(name, count, changed.get(name)) for name, count in rows.items()],
        ),
    }


def _where(database: Place) -> dict[str, dg.MetadataValue]:
    """Where readers find the register, and its size where it is one file."""
    if database.file is None:
        return {"place": dg.MetadataValue.text(str(database))}
    return {
        "file": dg.MetadataValue.path(str(database)),
        "bytes": dg.MetadataValue.int(database.file.stat().st_size),
    }


def _asset(table: Table | None) -> dg.AssetKey:
    return PUBLISHED if table is None else dg.AssetKey(table.name)


_EFFECTS = {"error": "Stops publication.", "warning": "A warning: it stops nothing."}
_SEVERITIES = {"error": dg.AssetCheckSeverity.ERROR, "warning": dg.AssetCheckSeverity.WARN}
_PLACES = {
    dg.AssetCheckKey(_asset(table), check.name): (check.name, table.name if table else None)
    for check in CHECKS
    for table in check.tables
}


@dg.multi_asset_check(
    name="check_published",
    specs=[
        dg.AssetCheckSpec(
            check.name,
            asset=_asset(table),
            description=f"{check.description}\n\n{_EFFECTS[check.severity]}",
        )
        for check in CHECKS
        for table in check.tables
    ],
    can_subset=True,
)
def check_published_register(
    context: dg.AssetCheckExecutionContext, duckdb: DuckDBResource
) -> Iterator[dg.AssetCheckResult]:
    """Looks at all published rows; publishing looks at each extract by itself."""
    if context.run.asset_selection:  # materializing in the UI asks for checks: publishing has them
        return
    with (
        step_guard(context.op_execution_context) as settings,
        duckdb.get_connection() as connection,
    ):
        key, results = check_published(
            connection,
            settings.database,
            max_loss_percent=settings.max_loss_percent,
            max_loss_percent_full=settings.max_loss_percent_full,
            only={_PLACES[check] for check in context.selected_asset_check_keys},
        )
        for result in results:
            evaluation = evaluated(key, result)
            yield dg.AssetCheckResult(
                asset_key=evaluation.asset_key,
                check_name=evaluation.check_name,
                passed=evaluation.passed,
                severity=evaluation.severity,
                description=evaluation.description,
                metadata=evaluation.metadata,
            )


def evaluated(key: ExtractKey, result: CheckResult) -> dg.AssetCheckEvaluation:
    """What a check found, as Dagster shows it."""
    found = result.found
    sample = {"sample": shown_table(found.columns, found.sample)} if found.sample else {}
    return dg.AssetCheckEvaluation(
        asset_key=_asset(result.table),
        check_name=result.check.name,
        passed=result.passed,
        severity=_SEVERITIES[result.severity],
        description=found.text,
        metadata={
            "extract": dg.MetadataValue.text(str(key)),
            "count": dg.MetadataValue.int(found.count),
            "looked_at": dg.MetadataValue.text(found.looked_at),
            **sample,
        },
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

    Beside it, in `exports/deltas/<from>_<to>`, are the rows that each extract of the last 31 days
    added and removed, and the net changes of the last 7 and 31 days.
    """
    with step_guard(context) as settings:
        give_way()
        key = extract_of_partition(context)
        export, deltas = write_export_and_deltas(
            settings,
            settings.export_dir,
            settings.deltas_dir,
            extract=str(key),
            report=lambda name, done, total: context.log.info(f"{name}: {done + 1} of {total}"),
        )
        if key not in dict(published_state_of(settings.database).published):
            raise NotReadyError(f"{key}: rolled back meanwhile; export what is published now")
        return dg.MaterializeResult(
            metadata={
                "directory": dg.MetadataValue.path(str(settings.export_dir)),
                "source": export.about.source,
                "privacy": export.about.privacy,
                "content_hash": export.state.content_hash,
                "bytes": export.bytes,
                "files": shown_table(
                    ("file", "rows", "bytes", "sha256"),
                    [(t.file, t.rows, t.bytes, t.sha256) for t in export.tables.values()],
                ),
                "deltas": shown_table(
                    ("directory", "rows_added", "rows_removed", "bytes"),
                    [(name, d.added, d.removed, d.bytes) for name, d in deltas.items()],
                ),
                **{f"rows/{name}": table.rows for name, table in export.tables.items()},
            }
        )


@dg.asset(
    deps=[PUBLISHED],
    group_name="export",
    kinds={"file"},
    owners=OWNERS,
    tags=tags("publish"),
    metadata=search_metadata(),
    retry_policy=RETRIES,
)
def search_index(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """The names, addresses and numbers by which `kbo find` finds enterprises, misspelt ones too.

    A directory beside the published file, replaced whole: of the newest published extract and no
    other. One of an extract before is brought up to date by what was touched since; a damaged one
    is made again. Until it is there, searches use SQL, which forgives nothing.
    """
    with step_guard(context) as settings:
        give_way()
        started = time.monotonic()
        built = build_index(settings)
        context.log.info(f"{built.mark.extract}: {built.how}, {built.documents:,} documents")
        return dg.MaterializeResult(
            metadata={
                "directory": dg.MetadataValue.path(str(settings.search_dir)),
                "extract": built.mark.extract,
                "privacy": built.mark.privacy,
                "how": built.how,
                "enterprises_written": built.enterprises,
                "documents": built.documents,
                "bytes": built.bytes,
                "seconds": round(time.monotonic() - started, 3),
            }
        )


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
            FULL_CHECK,
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

    All rows of all tables are compared, in both directions. The Full is taken from the downloads
    directory, or fetched from the portal and removed afterwards. `proof_sensor` starts this each
    `KBO_PROVE_DAYS`. The result is in the table `proof` and in `proofs/` of the data directory.
    """
    with step_guard(context) as settings:
        give_way()
        key = extract_of_partition(context)
        logged: set[str] = set()

        def report(name: str, done: int, total: int) -> None:
            if name not in logged:
                context.log.info(f"{key}: comparing {name}, {done} of {total} parts done")
                logged.add(name)

        result = prove(settings, key.number, report=context.log.info, report_tables=report)
        (context.log.info if result.is_equal else context.log.warning)(str(result))
        yield dg.MaterializeResult(
            metadata={
                "full": str(result.full),
                "drift": result.drift,
                "rows_compared": result.rows,
                "content_hash": result.content_hash,
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
        check_name=FULL_CHECK,
        passed=result.is_equal,
        severity=dg.AssetCheckSeverity.ERROR,
        description=str(result),
        metadata={"drift": result.drift, **sample},
    )
