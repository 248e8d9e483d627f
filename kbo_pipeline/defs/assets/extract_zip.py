"""The asset `extract_zip`: an extract's ZIP in the downloads directory."""

import time
from pathlib import Path

import dagster as dg

from kbo_pipeline.core.text import megabytes
from kbo_pipeline.defs.metadata import OWNERS, PREVIEW_ROWS, shown_table, tags, zip_metadata
from kbo_pipeline.defs.step import step_guard
from kbo_pipeline.fetch.archive import open_archive, read_extract
from kbo_pipeline.fetch.zips import fetch_zip, keep_zip, refused_zip
from kbo_pipeline.operate.runs.claims import claimed_partition
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.operate.runs.progress import ACCEPT_FAULTS_TAG


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

    A Full holds the whole register, an Update what changed since the extract before. The ZIP is
    downloaded from the portal unless it is here already, and is kept, so that the register can be
    rebuilt from it.
    """
    with (
        step_guard(context) as settings,
        claimed_partition(context, settings) as key,
    ):
        started = time.monotonic()
        source = Path(config.source_file) if config.source_file else None
        if source is None and ACCEPT_FAULTS_TAG in context.run.tags:
            source = refused_zip(settings, key)
        if source is not None:
            file, extract = keep_zip(settings, key, source)
        else:
            file = fetch_zip(settings, key, context.log.info)
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
