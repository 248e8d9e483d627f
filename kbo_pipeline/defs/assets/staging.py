"""The assets `import_staging_*`: an extract, typed and cut into batches."""

import time
from collections.abc import Iterator

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.disk_space import check_space_to_import
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.defs.metadata import OWNERS, PREVIEW_ROWS, preview, staging_metadata, tags
from kbo_pipeline.defs.step import RETRIES, step_guard
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.fetch.zips import kept_zip
from kbo_pipeline.operate.runs.claims import claimed_partition
from kbo_pipeline.operate.runs.partitions import kbo_extracts, register_batches, staging_asset
from kbo_pipeline.operate.runs.progress import ACCEPT_FAULTS_TAG, REJECTED_ROWS, WARNINGS
from kbo_pipeline.read.published import published_state_of
from kbo_pipeline.stage.faults import reported
from kbo_pipeline.stage.staged import open_staged, staging_file
from kbo_pipeline.stage.staging import stage


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
        if published_state_of(settings.database, connection).has(extract):
            context.log.info(f"{key}: already published: nothing to do")
            for table in ALL_TABLES:
                yield dg.MaterializeResult(
                    asset_key=staging_asset(table), metadata={"already_published": True}
                )
            return
        check_space_to_import(settings, key, zip_file)
        accepted_by = context.run.tags.get(ACCEPT_FAULTS_TAG)
        started = time.monotonic()
        with reported(settings.rejected_dir / str(key), zip_file):
            staged = stage(
                connection,
                settings,
                zip_file,
                extract,
                settings.staging_dir,
                max_faulty_rows=None if accepted_by else settings.max_faulty_rows,
                report=lambda line: context.log.info(f"{key}: {line}"),
            )
        for warning in staged.warnings:
            context.log.warning(f"{key}: {warning}")
        register_batches(context.instance, key, staged.batch_keys)
        seconds = round(time.monotonic() - started, 3)
        size = staging_file(settings.staging_dir, key).stat().st_size
        with open_staged(connection, settings.staging_dir, key):
            for table in ALL_TABLES:
                source = f"staging.{staging_asset(table)}"
                (row,) = connection.execute(f"SELECT count(*) FROM {source}").fetchall()
                yield dg.MaterializeResult(
                    asset_key=staging_asset(table),
                    metadata={
                        "dagster/row_count": row[0],
                        "batches": len(staged.batches),
                        "seconds": seconds,  # of the whole file, with all tables
                        "bytes": size,
                        "preview": preview(
                            connection.execute(f"FROM {source} LIMIT {PREVIEW_ROWS}")
                        ),
                        WARNINGS: list(staged.warnings),
                        REJECTED_ROWS: staged.rejected_rows,  # of the whole extract too
                        **({"faults_accepted_by": accepted_by} if accepted_by else {}),
                    },
                    data_version=dg.DataVersion(extract.sha256),
                )
