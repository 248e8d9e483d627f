"""Dynamic partitions: one for each extract, one for each batch of an extract."""

from collections.abc import Sequence
from itertools import groupby

import dagster as dg

from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.tables import Table

kbo_extracts = dg.DynamicPartitionsDefinition(name="kbo_extracts")
"""Partitions such as `0141-update`."""

kbo_batches = dg.DynamicPartitionsDefinition(name="kbo_batches")
"""Partitions such as `0141-update-0001`."""


def register_extract(instance: dg.DagsterInstance, key: ExtractKey) -> None:
    """Makes sure that an extract has its partition."""
    instance.add_dynamic_partitions("kbo_extracts", [str(key)])


def register_batches(
    instance: dg.DagsterInstance, key: ExtractKey, batch_keys: Sequence[str]
) -> None:
    """Makes the batches of an extract its partitions: these and no others.

    All are added in one call: a run over a range takes them in the order of their arrival.
    """
    known = batches_by_extract(instance).get(key, [])
    for stale in set(known) - set(batch_keys):
        instance.delete_dynamic_partition("kbo_batches", stale)
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
    from kbo_pipeline.core.errors import ExtractError

    try:
        return BatchKey.parse(text)
    except ExtractError:
        return None


def staging_asset(table: Table) -> str:
    """The name of the asset, and of the relation, that holds a table's staged rows."""
    return f"import_staging_{table.name}"
