"""What the Dagster UI shows of a table: its columns and a preview of its rows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from kbo_pipeline.faults import FAULT_COLUMNS, Fault
from kbo_pipeline.tables import Column, Table

if TYPE_CHECKING:
    from pandas import DataFrame

_BOOKKEEPING = (
    ("_snapshot_date", "DATE", "Day of the extract from which this row version holds."),
    ("_extract_number", "INTEGER", "Number of the extract from which this row version holds."),
    ("_deleted_at_extract", "INTEGER", "First extract in which it no longer holds; else NULL."),
    ("_is_current", "BOOLEAN", "Whether it holds at the newest extract."),
)


def register_schema(table: Table) -> dg.TableSchema:
    """The columns of a register table: types, meanings, code tables."""
    bookkeeping = [dg.TableColumn(name, kind, text) for name, kind, text in _BOOKKEEPING]
    return dg.TableSchema([*map(_column, table.columns), *bookkeeping])


def staging_schema(table: Table) -> dg.TableSchema:
    """The columns of a staging table."""
    return dg.TableSchema(
        [
            dg.TableColumn("batch_number", "INTEGER", "Batch in which the row is applied."),
            dg.TableColumn("operation", "VARCHAR", "`delete` or `insert`."),
            dg.TableColumn("row_sequence", "BIGINT", "Place of the row in the file."),
            *map(_column, table.columns),
        ]
    )


def preview(rows: "DataFrame") -> dg.TableMetadataValue:
    """A few rows as a table of the UI."""
    records = [
        dg.TableRecord({str(name): _shown(value) for name, value in row.items()})
        for row in rows.to_dict(orient="records")
    ]
    schema = dg.TableSchema([dg.TableColumn(str(name)) for name in rows.columns])
    return dg.MetadataValue.table(records=records, schema=schema)


def table_of(rows: Sequence[Mapping[str, str | int]]) -> dg.TableMetadataValue:
    """Rows with the same names as a table of the UI; there must be one at least."""
    schema = dg.TableSchema([dg.TableColumn(name) for name in rows[0]])
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows], schema)


def fault_table(faults: Sequence[Fault]) -> dg.TableMetadataValue:
    """What is wrong with an extract, as a table of the UI."""
    records = [
        dg.TableRecord({name: getattr(fault, name) for name in FAULT_COLUMNS}) for fault in faults
    ]
    return dg.MetadataValue.table(
        records=records, schema=dg.TableSchema([dg.TableColumn(name) for name in FAULT_COLUMNS])
    )


def _column(column: Column) -> dg.TableColumn:
    tags = {"kbo/code_category": column.code_category} if column.code_category else {}
    code = f" Explained in `code`: {column.code_category}." if column.code_category else ""
    return dg.TableColumn(
        column.name, column.type, column.description + code, tags=tags if "{" not in code else {}
    )


def _shown(value: Any) -> str | int | None:
    import pandas as pd  # here, because only a run that stages needs it: 0.6 s of start-up

    if value is None or value is pd.NaT or value is pd.NA:
        return None
    return int(value) if isinstance(value, int) else str(value)
