"""What Dagster is told of a batch that is applied."""

from collections.abc import Mapping
from types import MappingProxyType

import dagster as dg

from kbo_pipeline.apply.ledger import BatchChange
from kbo_pipeline.apply.register import Register
from kbo_pipeline.apply.tally import TALLY_COLUMNS, Tally
from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.defs.metadata import PREVIEW_ROWS, preview, shown_table


def shown(
    register: Register, extract: ExtractKey, tally: Tally, *, is_last: bool
) -> dict[str, dict[str, dg.MetadataValue]]:
    """What is shown besides the numbers of a batch, by table: kept small, 64 times an extract.

    The first table tells each time how far all are; the last batch shows some rows of each.
    """
    found: dict[str, dict[str, dg.MetadataValue]] = {table.name: {} for table in TABLES}
    if is_last:
        for table in TABLES:
            found[table.name]["preview"] = preview(
                register.opened_rows(table, extract, PREVIEW_ROWS)
            )
    found[TABLES[0].name]["progress"] = shown_table(TALLY_COLUMNS, tally.rows())
    return found


def materializations(
    key: BatchKey,
    change: BatchChange,
    more: Mapping[str, Mapping[str, dg.MetadataValue]] = MappingProxyType({}),
) -> list[dg.AssetMaterialization]:
    """The seven events of a batch, with its numbers and what else is shown, by table."""
    return [
        dg.AssetMaterialization(
            name,
            partition=str(key),
            metadata={
                "records": table.records,
                "rows_closed": table.rows_closed,
                "rows_opened": table.rows_opened,
                "rows_changed": table.rows_closed + table.rows_opened,
                "rows_unchanged": table.rows_unchanged,
                "duplicates_dropped": table.duplicates_dropped,
                "seconds": round(table.seconds, 3),
                "already_applied": change.already_applied,
                **more.get(name, {}),
            },
        )
        for name, table in change.tables.items()
    ]
