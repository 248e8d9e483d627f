"""The asset `parquet_export`: the current tables for programs that read Parquet."""

import dagster as dg

from kbo_pipeline.defs.metadata import OWNERS, export_metadata, table_of, tags
from kbo_pipeline.defs.step import step_guard
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.read.export import write_export


@dg.asset(
    deps=["published_extract"],
    partitions_def=kbo_extracts,
    group_name="export",
    kinds={"parquet"},
    owners=list(OWNERS),
    tags=tags("publish"),
    metadata=export_metadata(),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=5, jitter=dg.Jitter.PLUS_MINUS),
)
def parquet_export(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """The current tables and `enterprise_profile` as Parquet: sorted, compressed, with a manifest.

    They are in `exports/current` below the data directory, which holds a whole export or is not
    there. Only the newest published extract can be exported. `KBO_PRIVACY` says whether natural
    persons are in it.
    """
    with step_guard(context) as settings:
        done = write_export(
            settings,
            settings.export_dir,
            extract=context.partition_key,
            report=lambda name, done, total: context.log.info(f"{name}: {done + 1} of {total}"),
        )
        files: list[dict[str, str | int]] = [
            {"file": table.file, "rows": table.rows, "bytes": table.bytes, "sha256": table.sha256}
            for table in done.tables.values()
        ]
        return dg.MaterializeResult(
            metadata={
                "directory": dg.MetadataValue.path(str(settings.export_dir)),
                "source": done.source,
                "privacy": done.privacy,
                "bytes": done.bytes,
                "files": table_of(files),
                **{f"rows/{name}": table.rows for name, table in done.tables.items()},
            }
        )
