"""Dynamic partitions, for each extract and each batch: made, and forgotten with their events."""

import json
from collections.abc import Sequence
from itertools import groupby

import dagster as dg
from sqlalchemy import Connection, and_, or_, select

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey, key_or_none
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES, Table

kbo_extracts = dg.DynamicPartitionsDefinition(name="kbo_extracts")
"""Partitions such as `0141-update`."""

kbo_batches = dg.DynamicPartitionsDefinition(name="kbo_batches")
"""Partitions such as `0141-update-0001`."""


def staging_asset(table: Table) -> str:
    """The name of the asset, and of the relation, that holds a table's staged rows."""
    return f"import_staging_{table.name}"


_ZIP = dg.AssetKey("extract_zip")

_STAGING = [dg.AssetKey(staging_asset(table)) for table in ALL_TABLES]

_BY_EXTRACT = [
    *_STAGING,
    *map(
        dg.AssetKey,
        ("change_report", "parquet_export", "full_verification", "published_extract", CODE.name),
    ),
]

_BY_BATCH = [dg.AssetKey(table.name) for table in TABLES]

_FORGOTTEN = (
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_FAILED_TO_MATERIALIZE,
)


def register_extract(instance: dg.DagsterInstance, key: ExtractKey) -> None:
    """Makes sure that an extract has its partition."""
    instance.add_dynamic_partitions("kbo_extracts", [str(key)])


def register_batches(
    instance: dg.DagsterInstance, key: ExtractKey, batch_keys: Sequence[str]
) -> None:
    """Makes the batches of an extract its partitions: these and no others.

    All are added in one call: a run over a range takes them in the order of their arrival.
    """
    present = batches_by_extract(instance).get(key, [])
    if present != list(batch_keys):
        for batch in present:
            instance.delete_dynamic_partition("kbo_batches", batch)
        instance.add_dynamic_partitions("kbo_batches", list(batch_keys))


def batches_by_extract(instance: dg.DagsterInstance) -> dict[ExtractKey, list[str]]:
    """The batch keys of each extract, in number order; keys that are none of ours are left out."""
    keys = (batch_or_none(text) for text in instance.get_dynamic_partitions("kbo_batches"))
    ordered = sorted(key for key in keys if key is not None)
    return {
        extract: [str(key) for key in group]
        for extract, group in groupby(ordered, key=lambda key: key.extract)
    }


def batch_or_none(text: str) -> BatchKey | None:
    """A batch key, or None for a text that is none: anyone may add partitions in the UI."""
    try:
        return BatchKey.parse(text)
    except ExtractError:
        return None


def forget_extract(
    instance: dg.DagsterInstance,
    key: ExtractKey,
    *,
    is_whole: bool = False,
    is_staged: bool = False,
) -> None:
    """Makes all partitions of an extract missing, also those of its batches, however often called.

    Their events go: Dagster shows a partition as materialized as long as it has them. With
    `is_whole` that of `extract_zip` is missing too, and its batches are no partitions any more; if
    it `is_staged` anew, those of staging stay.
    """
    by_extract = [asset for asset in _BY_EXTRACT if not (is_staged and asset in _STAGING)]
    assets = [*by_extract, *_BY_BATCH, *([_ZIP] if is_whole else [])]
    partitions_of = _partitions_with_events(instance, assets, str(key))
    for asset in assets:  # staging first: without it no sensor takes the extract for one to apply
        if asset in partitions_of:
            instance.wipe_asset_partitions(asset, partitions_of[asset])
    if is_whole:
        for batch in instance.get_dynamic_partitions("kbo_batches"):
            if batch.startswith(f"{key}-"):
                instance.delete_dynamic_partition("kbo_batches", batch)
    # Once more: a web server that read the events a moment ago may have cached their status.
    instance.wipe_asset_cached_status(assets)


def remove_partition(
    instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition, name: str
) -> None:
    """Removes a partition that somebody has added under a wrong name; the web UI cannot.

    Args:
        instance: where it is recorded.
        partitions: `kbo_extracts` or `kbo_batches`.
        name: its name.
    """
    assets = _BY_BATCH if partitions is kbo_batches else [_ZIP, *_BY_EXTRACT]
    instance.delete_dynamic_partition(str(partitions.name), name)
    for asset in assets:
        instance.wipe_asset_partitions(asset, [name])
    instance.wipe_asset_cached_status(assets)


def mistyped_partitions(
    instance: dg.DagsterInstance,
) -> list[tuple[dg.DynamicPartitionsDefinition, str]]:
    """The partitions that are neither an extract nor a batch of one that has a partition."""
    extracts = instance.get_dynamic_partitions("kbo_extracts")
    batches = instance.get_dynamic_partitions("kbo_batches")
    keys = {key for key in map(key_or_none, extracts) if key is not None}
    return [
        *((kbo_extracts, name) for name in extracts if key_or_none(name) is None),
        *(
            (kbo_batches, name)
            for name in batches
            if (batch := batch_or_none(name)) is None or batch.extract not in keys
        ),
    ]


def forget_batches(instance: dg.DagsterInstance, batches: list[str]) -> None:
    """Makes these batches missing for all seven tables, however often called."""
    for asset in _BY_BATCH:
        instance.wipe_asset_partitions(asset, batches)
    instance.wipe_asset_cached_status(_BY_BATCH)


def _partitions_with_events(
    instance: dg.DagsterInstance, assets: Sequence[dg.AssetKey], extract: str
) -> dict[dg.AssetKey, list[str]]:
    """The partitions of an extract, and of its batches, that have events, by asset."""
    from dagster._core.storage.event_log import SqlEventLogStorage
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    events = SqlEventLogStorageTable.c
    query = (
        select(events.asset_key, events.partition)
        .distinct()
        .where(
            events.asset_key.in_([asset.to_string() for asset in assets]),
            events.dagster_event_type.in_([event_type.value for event_type in _FORGOTTEN]),
            or_(events.partition == extract, events.partition.like(f"{extract}-%")),
        )
    )
    partitions: dict[dg.AssetKey, list[str]] = {}
    with storage.index_connection() as connection:
        for name, partition in connection.execute(query):
            partitions.setdefault(dg.AssetKey(json.loads(name)), []).append(partition)
    return partitions


def wipe_partitions(connection: Connection, asset: str, partitions: Sequence[str]) -> None:
    """Removes all that makes partitions of an asset materialized, failed or in progress.

    The asset's cached status goes too, and its newest materialization, which Dagster then looks for
    among the events that are left.
    """
    from dagster._core.storage.event_log.schema import (
        AssetCheckExecutionsTable,
        AssetEventTagsTable,
        AssetKeyTable,
        SqlEventLogStorageTable,
    )

    events, checks = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c
    forgotten = and_(
        events.asset_key == asset,
        events.dagster_event_type.in_([event_type.value for event_type in _FORGOTTEN]),
        events.partition.in_(partitions),
    )
    # In the order of Dagster's own writing, which would wait for us or we for it: the events first,
    # then the row of the asset.
    connection.execute(
        AssetEventTagsTable.delete().where(
            AssetEventTagsTable.c.event_id.in_(select(events.id).where(forgotten))
        )
    )
    connection.execute(SqlEventLogStorageTable.delete().where(forgotten))
    connection.execute(
        AssetCheckExecutionsTable.delete().where(
            checks.asset_key == asset, checks.partition.in_(partitions)
        )
    )
    connection.execute(
        AssetKeyTable.update()
        .where(AssetKeyTable.c.asset_key == asset)
        .values(last_materialization=None, cached_status_data=None)
    )


def remove_checks_of_run(connection: Connection, run_id: str) -> None:
    """Removes the results of a run's asset checks, which Dagster keeps when it deletes the run."""
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Table

    connection.execute(Table.delete().where(Table.c.run_id == run_id))
