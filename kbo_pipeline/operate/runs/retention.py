"""Makes partitions missing: what Dagster holds of an extract goes, so that it can come again."""

import dagster as dg
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from sqlalchemy import or_, select

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES
from kbo_pipeline.operate.runs.partitions import staging_asset

_BY_EXTRACT = [
    dg.AssetKey(name)
    for name in (
        *("change_report", "parquet_export", "full_verification", "published_extract", CODE.name),
        *(staging_asset(table) for table in ALL_TABLES),
    )
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
    assets = [*_BY_BATCH, *_BY_EXTRACT, *([dg.AssetKey("extract_zip")] if with_zip else [])]
    # First: without batches no sensor takes the extract for one that is to be applied.
    for batch in instance.get_dynamic_partitions("kbo_batches"):
        if batch.startswith(f"{key}-"):
            instance.delete_dynamic_partition("kbo_batches", batch)
    found = _with_events(instance, key)
    for asset in assets:
        if asset in found:
            instance.wipe_asset_partitions(asset, found[asset])
    # Once more: a web server that has read the events a moment ago may have kept what they said.
    instance.wipe_asset_cached_status(assets)


def forget_batches(instance: dg.DagsterInstance, batches: list[str]) -> None:
    """Makes these batches missing for all seven tables, however often called."""
    for asset in _BY_BATCH:
        instance.wipe_asset_partitions(asset, batches)
    instance.wipe_asset_cached_status(_BY_BATCH)


def _with_events(instance: dg.DagsterInstance, key: ExtractKey) -> dict[dg.AssetKey, list[str]]:
    """The partitions of an extract that have events, by asset; also batches of an earlier cut."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    events = SqlEventLogStorageTable.c
    names = [asset.to_string() for asset in (*_BY_BATCH, *_BY_EXTRACT, dg.AssetKey("extract_zip"))]
    query = (
        select(events.asset_key, events.partition)
        .distinct()
        .where(
            events.asset_key.in_(names),
            events.dagster_event_type.in_([event_type.value for event_type in _EVENTS]),
            or_(events.partition == str(key), events.partition.like(f"{key}-%")),
        )
    )
    found: dict[dg.AssetKey, list[str]] = {}
    with storage.index_connection() as connection:
        for name, partition in connection.execute(query):
            asset = dg.AssetKey.from_db_string(name)
            assert asset is not None
            found.setdefault(asset, []).append(partition)
    return found
