"""How far each extract is, as Dagster's storage knows it; the register stays closed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import dagster as dg

from kbo_pipeline.defs.partitions import batches_by_extract
from kbo_pipeline.errors import ExtractError
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.planning import next_to_apply
from kbo_pipeline.tables import ENTERPRISE, TABLES

_STAGED = dg.AssetKey(f"import_staging_{ENTERPRISE.name}")
_EXTRACTS = "kbo_extracts"
_PUBLISHED = dg.AssetKey("published_extract")


@dataclass(frozen=True)
class Progress:
    """A view on the events of an instance, read when asked for.

    Events have growing storage ids. A batch counts as applied when its newest materialization is
    younger than the staging of its extract: so an extract that was staged again is applied again.
    """

    instance: dg.DagsterInstance

    @cached_property
    def staged(self) -> Mapping[ExtractKey, int]:
        """Storage id of the newest staging of each extract."""
        return _by_extract(self._materialized(_STAGED))

    @cached_property
    def published(self) -> Mapping[ExtractKey, int]:
        """Storage id of the newest publication of each extract."""
        return _by_extract(self._materialized(_PUBLISHED))

    @cached_property
    def known(self) -> set[ExtractKey]:
        """All extracts that have a partition."""
        return set(_by_extract(dict.fromkeys(self.instance.get_dynamic_partitions(_EXTRACTS), 0)))

    @cached_property
    def batches(self) -> Mapping[ExtractKey, list[str]]:
        """Batch keys of each extract, in number order."""
        return batches_by_extract(self.instance)

    @property
    def newest_published(self) -> ExtractKey | None:
        """The newest published extract."""
        return max(self.published, key=lambda key: key.number, default=None)

    @property
    def next_to_apply(self) -> ExtractKey | None:
        """The staged extract that is to be applied and published next."""
        waiting = [k for k in self.staged if k not in self.published and k in self.batches]
        return next_to_apply(waiting, self.newest_published)

    def applied(self, key: ExtractKey) -> dict[str, dict[str, int]]:
        """Storage ids of the applied batches of an extract, by table name and batch key."""
        staged = self.staged.get(key, 0)
        batches = set(self.batches.get(key, ()))
        return {
            table.name: {
                batch: storage_id
                for batch, storage_id in self._materialized(
                    dg.AssetKey(table.name), batches
                ).items()
                if storage_id > staged
            }
            for table in TABLES
        }

    def missing_batches(self, key: ExtractKey) -> list[str]:
        """Batch keys that are not applied for every table, in number order."""
        applied = self.applied(key)
        return [
            batch
            for batch in self.batches.get(key, [])
            if any(batch not in applied[table.name] for table in TABLES)
        ]

    def _materialized(
        self, asset: dg.AssetKey, partitions: set[str] | None = None
    ) -> Mapping[str, int]:
        return self.instance.event_log_storage.get_latest_storage_id_by_partition(
            asset, dg.DagsterEventType.ASSET_MATERIALIZATION, partitions=partitions
        )


def _by_extract(ids: Mapping[str, int]) -> dict[ExtractKey, int]:
    """Leaves out partitions that anyone may have added in the UI under other names."""
    found = {}
    for text, storage_id in ids.items():
        try:
            found[ExtractKey.parse(text)] = storage_id
        except ExtractError:
            continue
    return found
