"""The assets `code` and `published_extract`: readers see the extract from here on."""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.places import Place
from kbo_pipeline.core.tables import CODE, TABLES
from kbo_pipeline.defs.assets.register import lineage_only
from kbo_pipeline.defs.checks import evaluated
from kbo_pipeline.defs.metadata import (
    OWNERS,
    PREVIEW_ROWS,
    change_metadata,
    preview,
    published_metadata,
    register_metadata,
    shown_table,
    tags,
)
from kbo_pipeline.defs.step import AT_IMPORT, RETRIES, step_guard
from kbo_pipeline.operate.runs.claims import WRITER_POOL, claimed_partition
from kbo_pipeline.operate.runs.history import stages_metadata
from kbo_pipeline.operate.runs.live import forget_live, reporting
from kbo_pipeline.operate.runs.partitions import kbo_extracts, staging_asset
from kbo_pipeline.operate.runs.progress import ACCEPT_LOSS_TAG, PUBLISHED, ledger_metadata
from kbo_pipeline.publish.publish import CheckResult, Publication, publish
from kbo_pipeline.read.published import open_published


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
        reporting(settings, key, context.run, "publishing") as report_share,
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
            report_share=report_share,
        )
        again = "already published: nothing to do" if publication.already_published else "published"
        context.log.info(f"{key}: {again}")
        seconds = round(time.monotonic() - started, 3)
        with open_published(connection, settings.database):
            codes = preview(connection.execute(f'FROM "current".{CODE.name} LIMIT {PREVIEW_ROWS}'))
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
                **({} if publication.already_published else stages_metadata(report_share.spent)),
                **accepted,
                **_counts(publication),
            },
        )
    forget_live(settings, key)


def _counts(publication: Publication) -> dict[str, Any]:
    """What a publication has in each table and has changed there, and its entry of the ledger."""
    rows, changed = publication.row_counts, publication.rows_changed
    return {
        "names_resolved": publication.names_resolved,
        "rows_changed": sum(changed.values()),
        **ledger_metadata(publication.link),
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
