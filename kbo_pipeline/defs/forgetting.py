"""Makes partitions missing: what Dagster holds of an extract goes, so that it can come again."""

import dagster as dg

from kbo_pipeline.defs.partitions import batch_or_none, batches_by_extract
from kbo_pipeline.defs.staging import staging_asset
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.tables import ALL_TABLES, CODE, TABLES

_BY_EXTRACT = [
    dg.AssetKey(name)
    for name in ("published_extract", CODE.name, *(staging_asset(table) for table in ALL_TABLES))
]
_BY_BATCH = [dg.AssetKey(table.name) for table in TABLES]
_EVENTS = (
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
)


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
    # First: without batches no sensor takes the extract for one that is to be applied.
    for batch in batches_by_extract(instance).get(key, []):
        instance.delete_dynamic_partition("kbo_batches", batch)
    for asset in _BY_BATCH:
        batches = sorted(_with_events(instance, asset, key))
        if batches:
            instance.wipe_asset_partitions(asset, batches)
    by_extract = [*_BY_EXTRACT, *([dg.AssetKey("extract_zip")] if with_zip else [])]
    for asset in by_extract:
        instance.wipe_asset_partitions(asset, [str(key)])
    # Once more: a web server that has read the events a moment ago may have kept what they said.
    instance.wipe_asset_cached_status([*_BY_BATCH, *by_extract])


def _with_events(instance: dg.DagsterInstance, asset: dg.AssetKey, key: ExtractKey) -> set[str]:
    """The batches of an extract that an asset has events of, also those of an earlier cut."""
    storage = instance.event_log_storage
    found = {
        batch_or_none(text): text
        for event in _EVENTS
        for text in storage.get_latest_storage_id_by_partition(asset, event)
    }
    return {text for batch, text in found.items() if batch is not None and batch.extract == key}
