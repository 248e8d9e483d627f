"""Makes partitions missing: what Dagster holds of an extract goes, so that it can come again."""

import dagster as dg

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES
from kbo_pipeline.operate.runs.partitions import staging_asset
from kbo_pipeline.operate.undocumented import partitions_with_events

_BY_EXTRACT = [
    dg.AssetKey(name)
    for name in (
        *("change_report", "parquet_export", "full_verification", "published_extract", CODE.name),
        *(staging_asset(table) for table in ALL_TABLES),
    )
]
_BY_BATCH = [dg.AssetKey(table.name) for table in TABLES]


def forget_extract(
    instance: dg.DagsterInstance, key: ExtractKey, *, with_zip: bool = False
) -> None:
    """Makes all partitions of an extract missing, however often called.

    Its batches are no partitions any more. Their events go too: Dagster would show partitions that
    are added again under the same names as materialized.

    Args:
        instance: where they are recorded.
        key: the extract.
        with_zip: the partition of `extract_zip` too.
    """
    assets = [*_BY_BATCH, *_BY_EXTRACT, *([dg.AssetKey("extract_zip")] if with_zip else [])]
    # First: without batches no sensor takes the extract for one that is to be applied.
    for batch in instance.get_dynamic_partitions("kbo_batches"):
        if batch.startswith(f"{key}-"):
            instance.delete_dynamic_partition("kbo_batches", batch)
    for asset, partitions in partitions_with_events(instance, assets, str(key)).items():
        instance.wipe_asset_partitions(asset, partitions)
    # Once more: a web server that has read the events a moment ago may have kept what they said.
    instance.wipe_asset_cached_status(assets)


def forget_batches(instance: dg.DagsterInstance, batches: list[str]) -> None:
    """Makes these batches missing for all seven tables, however often called."""
    for asset in _BY_BATCH:
        instance.wipe_asset_partitions(asset, batches)
    instance.wipe_asset_cached_status(_BY_BATCH)
