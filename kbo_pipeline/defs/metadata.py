"""What the Dagster UI shows of assets: columns and where they come from, owners, tags, previews."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import dagster as dg
import duckdb

from kbo_pipeline.apply.ledger import TableChange
from kbo_pipeline.core.tables import ALL_TABLES, ENTERPRISE, TABLES, Column, Table
from kbo_pipeline.core.text import cut
from kbo_pipeline.stage.faults import FAULT_COLUMNS, Fault

OWNERS = ("team:register",)
"""Whom the UI names as the one who looks after an asset."""

PREVIEW_ROWS = 10
"""So many rows are in a preview."""

_LONGEST = 60  # characters of a text in a preview

_BOOKKEEPING = (
    ("_snapshot_date", "DATE", "Day of the extract from which this row version holds."),
    ("_extract_number", "INTEGER", "Number of the extract from which this row version holds."),
    ("_deleted_at_extract", "INTEGER", "First extract in which it no longer holds; else NULL."),
    ("_is_current", "BOOLEAN", "Whether it holds at the newest extract."),
)
_STAGING = (
    ("batch_number", "INTEGER", "Batch in which the row is applied."),
    ("operation", "VARCHAR", "`delete` or `insert`."),
    ("row_sequence", "BIGINT", "Place of the row in the file."),
)

Verb = Literal["fetch", "stage", "apply", "publish"]


def tags(verb: Verb, *tables: Table) -> dict[str, str]:
    """The tags of an asset: which of the four verbs makes it, and of which table, if of one."""
    return {"kbo/verb": verb, **({"kbo/table": tables[0].name} if len(tables) == 1 else {})}


def zip_metadata() -> dict[str, Any]:
    """What is known beforehand of a ZIP: the columns of its CSV files."""
    return {
        "dagster/column_schema": dg.TableSchema(
            [
                dg.TableColumn(_csv_column(table, column), "text", column.description)
                for table in ALL_TABLES
                for column in table.columns
            ]
        )
    }


def staging_metadata(table: Table, extract_zip: str, relation: str) -> dict[str, Any]:
    """What is known beforehand of a staging table: its columns, and those of the CSV behind them.

    Args:
        table: the table.
        extract_zip: name of the asset with the ZIP.
        relation: name of the staging table.
    """
    own = [dg.TableColumn(name, kind, text) for name, kind, text in _STAGING]
    return {
        "dagster/column_schema": dg.TableSchema([*own, *map(_column, table.columns)]),
        "dagster/column_lineage": _lineage(
            (column.name, extract_zip, _csv_column(table, column)) for column in table.columns
        ),
        "dagster/table_name": relation,
    }


def register_metadata(table: Table, staging_asset: str) -> dict[str, Any]:
    """What is known beforehand of a register table: its columns, and the staged ones behind them.

    Args:
        table: the table.
        staging_asset: name of the asset with its staged rows.
    """
    return {
        "dagster/column_schema": dg.TableSchema(_register_columns(table)),
        "dagster/column_lineage": _lineage(
            (column.name, staging_asset, column.name) for column in table.columns
        ),
        "dagster/table_name": f"main.{table.name}",
    }


def published_metadata() -> dict[str, Any]:
    """What is known beforehand of the file that readers open: the columns of all its tables."""
    columns = [(table, column) for table in ALL_TABLES for column in _register_columns(table)]
    return {
        "dagster/column_schema": dg.TableSchema(
            [
                dg.TableColumn(f"{table.name}.{c.name}", c.type, c.description, tags=c.tags)
                for table, c in columns
            ]
        ),
        "dagster/column_lineage": _lineage(
            (f"{table.name}.{column.name}", table.name, column.name) for table, column in columns
        ),
    }


_DRIFT = (
    ("table", "VARCHAR", "The table that is compared."),
    ("rows_in_zip", "BIGINT", "Rows that the Full has."),
    ("rows_in_register", "BIGINT", "Rows that the register had at the extract."),
    ("only_in_zip", "BIGINT", "Rows that the register lacks."),
    ("only_in_register", "BIGINT", "Rows that the Full lacks."),
)


def export_metadata() -> dict[str, Any]:
    """What is known beforehand of an export: the columns of its files, but for the profile."""
    columns = [(table, column) for table in ALL_TABLES for column in table.columns]
    names = [f"{table.name}.{column.name}" for table, column in columns]
    shown = [_column(column) for _, column in columns]
    return {
        "dagster/column_schema": dg.TableSchema(
            [
                dg.TableColumn(name, c.type, c.description, tags=c.tags)
                for name, c in zip(names, shown, strict=True)
            ]
        ),
        "dagster/column_lineage": _lineage((name, "published_extract", name) for name in names),
    }


def verification_metadata() -> dict[str, Any]:
    """What is known beforehand of a comparison with a Full: the columns of what it finds."""
    columns = [dg.TableColumn(name, kind, text) for name, kind, text in _DRIFT]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def change_metadata(change: TableChange) -> dict[str, Any]:
    """What applying did to a table."""
    return {
        "rows_closed": change.rows_closed,
        "rows_opened": change.rows_opened,
        "rows_changed": change.rows_closed + change.rows_opened,
        "rows_unchanged": change.rows_unchanged,
        "duplicates_dropped": change.duplicates_dropped,
        "seconds": round(change.seconds, 3),
    }


_CHANGES = (
    ("table_name", "The table in which the change is seen."),
    ("kind", "The kind of change, such as `new` or `moved`; explained in docs/changes.md."),
    ("entity_number", "Number of the enterprise, establishment unit or branch."),
    ("enterprise_number", "Number of the enterprise that it is or belongs to."),
    ("name", "Its main name, after the extract or else before it."),
    ("before", "What it was, as text in KBO's codes; none when it was nothing."),
    ("after", "What it is now."),
)


def report_metadata() -> dict[str, Any]:
    """What is known beforehand of a change report: the columns of its list."""
    keys = [f"{table.name}.{table.key}" for table in TABLES]
    owners = [f"{t.name}.{ENTERPRISE.key}" for t in TABLES if ENTERPRISE.key in t.column_names]
    origins = {"entity_number": keys, "enterprise_number": owners}
    return {
        "dagster/column_schema": dg.TableSchema(
            [dg.TableColumn(name, "VARCHAR", text) for name, text in _CHANGES]
        ),
        "dagster/column_lineage": _lineage(
            (name, "published_extract", origin) for name in origins for origin in origins[name]
        ),
    }


def preview(found: duckdb.DuckDBPyConnection) -> dg.TableMetadataValue:
    """What a connection has just queried, as a table of the UI; the query has a limit.

    Long texts are cut: the UI's columns are narrow.
    """
    names = [name for name, *_ in found.description or ()]
    rows = ([_cut(_shown(value)) for value in row] for row in found.fetchall())
    return shown_table(names, rows)


def shown_table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> dg.TableMetadataValue:
    """Rows as a table of the UI."""
    return dg.MetadataValue.table(
        records=[
            dg.TableRecord({n: _shown(value) for n, value in zip(names, row, strict=True)})
            for row in rows
        ],
        schema=dg.TableSchema([dg.TableColumn(name) for name in names]),
    )


def table_of(rows: Sequence[Mapping[str, str | int]]) -> dg.TableMetadataValue:
    """Rows with the same names as a table of the UI; there must be one at least."""
    return shown_table(list(rows[0]), [list(row.values()) for row in rows])


def fault_table(faults: Sequence[Fault]) -> dg.TableMetadataValue:
    """What is wrong with an extract, as a table of the UI."""
    return shown_table(
        FAULT_COLUMNS, [[getattr(fault, name) for name in FAULT_COLUMNS] for fault in faults]
    )


def _csv_column(table: Table, column: Column) -> str:
    return f"{table.name}.csv {column.csv_name}"


def _register_columns(table: Table) -> list[dg.TableColumn]:
    bookkeeping = [dg.TableColumn(name, kind, text) for name, kind, text in _BOOKKEEPING]
    return [*map(_column, table.columns), *bookkeeping]


def _lineage(columns: Iterable[tuple[str, str, str]]) -> dg.TableColumnLineage:
    """Columns, each with the asset and the columns that it is made from."""
    origins: dict[str, list[dg.TableColumnDep]] = {}
    for name, asset, origin in columns:
        dep = dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=origin)
        origins.setdefault(name, []).append(dep)
    return dg.TableColumnLineage(origins)


def _column(column: Column) -> dg.TableColumn:
    tags = {"kbo/code_category": column.code_category} if column.code_category else {}
    code = f" Explained in `code`: {column.code_category}." if column.code_category else ""
    return dg.TableColumn(
        column.name, column.type, column.description + code, tags=tags if "{" not in code else {}
    )


def _shown(value: Any) -> str | int | float | None:
    return value if value is None or isinstance(value, int | float) else str(value)


def _cut(value: str | int | float | None) -> str | int | float | None:
    return cut(value, _LONGEST) if isinstance(value, str) else value
