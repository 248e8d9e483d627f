"""The assets `extract_zip` and `import_staging_*`: an extract, fetched, typed, cut into batches."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_duckdb import DuckDBResource
from duckdb import DuckDBPyConnection

from kbo_pipeline.core.disk_space import check_space_to_import
from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.extracts import Extract
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import ALL_TABLES, Table
from kbo_pipeline.core.text import megabytes
from kbo_pipeline.defs.metadata import (
    OWNERS,
    PREVIEW_ROWS,
    preview,
    shown_table,
    staging_metadata,
    tags,
    zip_metadata,
)
from kbo_pipeline.defs.step import RETRIES, step_guard
from kbo_pipeline.fetch.archive import open_archive, read_extract
from kbo_pipeline.fetch.zips import fetch_zip, keep_zip, kept_zip, refused_zip
from kbo_pipeline.operate.runs.claims import claimed_partition
from kbo_pipeline.operate.runs.live import reporting, usual_seconds_of
from kbo_pipeline.operate.runs.partitions import kbo_extracts, register_batches, staging_asset
from kbo_pipeline.operate.runs.progress import (
    ACCEPT_FAULTS_TAG,
    REJECTED_ROWS,
    REPAIR_TAG,
    WARNINGS,
)
from kbo_pipeline.publish.correction import repair_status
from kbo_pipeline.read.published import published_state_of
from kbo_pipeline.stage.faults import reported
from kbo_pipeline.stage.staged import open_staged, staging_file
from kbo_pipeline.stage.staging import stage


class ExtractZipConfig(dg.Config):
    """Where the ZIP comes from.

    Attributes:
        source_file: path of a ZIP; None for the one in the downloads directory, or else the one
            on the portal.
    """

    source_file: str | None = None


@dg.asset(
    partitions_def=kbo_extracts,
    group_name="download",
    kinds={"zip", "csv"},
    owners=OWNERS,
    tags=tags("fetch"),
    metadata=zip_metadata(),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=5, jitter=dg.Jitter.PLUS_MINUS),
)
def extract_zip(
    context: dg.AssetExecutionContext, config: ExtractZipConfig
) -> dg.MaterializeResult[None]:
    """One extract of KBO Open Data as the government publishes it: a ZIP of CSV files.

    A Full holds the whole register, an Update what changed since the extract before.

    A partition is called after the extract's number, with at least four digits, and its type:
    `0140-full`, `0141-update`. One with another name is refused and removed again.

    The ZIP is looked for in the directory `downloads` of the data directory, under the name that
    KBO gives it; if it is not there, it is downloaded from the portal. `source_file` in the run
    config names another place. The ZIP is kept, so that the register can be rebuilt from it.
    """
    with (
        step_guard(context) as settings,
        claimed_partition(context, settings) as key,
        reporting(
            settings,
            key,
            context.run,
            "downloading",
            usual_seconds_of(context.instance, key.type),
        ) as report_progress,
    ):
        started = time.monotonic()
        source = Path(config.source_file) if config.source_file else None
        if source is None and ACCEPT_FAULTS_TAG in context.run.tags:
            source = refused_zip(settings, key)
        if source is not None:
            report_progress(0.0, f"copying {source.name}")
            file, extract = keep_zip(settings, key, source)
        else:
            file = fetch_zip(settings, key, context.log.info, report_progress)
            extract = read_extract(file)
        context.log.info(f"{key}: {file.name}, {megabytes(file.stat().st_size, 1)}")
        return dg.MaterializeResult(
            metadata={
                "file": dg.MetadataValue.path(str(file)),
                "sha256": extract.sha256,
                "bytes": file.stat().st_size,
                "seconds": round(time.monotonic() - started, 3),
                "snapshot_date": str(extract.snapshot_date),
                "extract_timestamp": str(extract.timestamp),
                "version": extract.version,
                "preview": shown_table(("file", "bytes"), _largest_members(file)),
            },
            data_version=dg.DataVersion(extract.sha256),
        )


def _largest_members(zip_file: Path) -> list[tuple[str, int]]:
    members = open_archive(zip_file).members.values()
    largest = sorted(members, key=lambda member: -member.length)[:PREVIEW_ROWS]
    return [(member.name, member.length) for member in largest]


@dg.multi_asset(
    name="import_staging",
    specs=[
        dg.AssetSpec(
            staging_asset(table),
            deps=["extract_zip"],
            partitions_def=kbo_extracts,
            group_name="staging",
            kinds={"duckdb"},
            owners=OWNERS,
            tags=tags("stage", table),
            description=f"What an extract says of `{table.name}`: rows to delete and to insert, "
            f"typed, in batches.\n\n{table.description}\n\nRead from the CSV files in the ZIP;"
            " gone once the extract is published.",
            metadata=staging_metadata(table, "extract_zip", f"staging.{staging_asset(table)}"),
        )
        for table in ALL_TABLES
    ],
    retry_policy=RETRIES,
)
def import_staging(
    context: dg.AssetExecutionContext, duckdb: DuckDBResource
) -> Iterator[dg.MaterializeResult[None]]:
    """Loads the CSV files of an extract into its own DuckDB file and cuts it into batches."""
    with (
        step_guard(context) as settings,
        claimed_partition(context, settings) as key,
        duckdb.get_connection() as connection,
    ):
        zip_file = kept_zip(settings, key)
        extract = read_extract(zip_file)
        is_repair = REPAIR_TAG in context.run.tags  # in place of what is published
        if not is_repair and _is_published(connection, settings, extract):
            context.log.info(f"{key}: already published: nothing to do")
            for table in ALL_TABLES:
                yield dg.MaterializeResult(
                    asset_key=staging_asset(table),
                    metadata={"already_published": True},
                    data_version=dg.DataVersion(extract.sha256),
                )
            return
        check_space_to_import(settings, key, zip_file)
        accepted_by = context.run.tags.get(ACCEPT_FAULTS_TAG)
        started = time.monotonic()
        with (
            reported(settings.rejected_dir / str(key), zip_file),
            reporting(settings, key, context.run, "staging") as report_progress,
        ):
            staged = stage(
                connection,
                settings,
                zip_file,
                extract,
                settings.staging_dir,
                max_faulty_rows=None if accepted_by else settings.max_faulty_rows,
                accept_by="kbo repair" if is_repair else "kbo retry",
                report=lambda line: context.log.info(f"{key}: {line}"),
                report_progress=report_progress,
            )
        for warning in staged.warnings:
            context.log.warning(f"{key}: {warning}")
        register_batches(context.instance, key, staged.batch_keys)
        of_extract: dict[str, Any] = {
            "batches": len(staged.batches),
            "seconds": round(time.monotonic() - started, 3),
            "bytes": staging_file(settings.staging_dir, key).stat().st_size,
            WARNINGS: list(staged.warnings),
            REJECTED_ROWS: staged.rejected_rows,
            **({"faults_accepted_by": accepted_by} if accepted_by else {}),
        }
        with open_staged(connection, settings.staging_dir, key):
            for table in ALL_TABLES:
                yield dg.MaterializeResult(
                    asset_key=staging_asset(table),
                    metadata={**_of_table(connection, table), **of_extract},
                    data_version=dg.DataVersion(extract.sha256),
                )


def _is_published(connection: DuckDBPyConnection, settings: Settings, extract: Extract) -> bool:
    """Whether readers have an extract, and no repair is to put it in its own place.

    A repair that was begun lets no other extract write the register: who keeps it imports one, and
    none was begun.
    """
    if not published_state_of(settings.database, connection).has(extract):
        return False
    if extract.key.type != "full":
        return True
    try:
        return repair_status(connection, settings, extract.key) != "processing"
    except StorageError:
        return True


def _of_table(connection: DuckDBPyConnection, table: Table) -> dict[str, Any]:
    source = f"staging.{staging_asset(table)}"
    ((count,),) = connection.execute(f"SELECT count(*) FROM {source}").fetchall()
    rows = connection.execute(f"FROM {source} LIMIT {PREVIEW_ROWS}")
    return {"dagster/row_count": count, "preview": preview(rows)}
