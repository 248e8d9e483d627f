"""What the Dagster UI shows of assets: columns and where they come from, owners, tags, previews."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import dagster as dg
import duckdb

from kbo_pipeline.apply.ledger import TableChange
from kbo_pipeline.core.tables import ALL_TABLES, ENTERPRISE, TABLES, Column, Table
from kbo_pipeline.core.text import cut
from kbo_pipeline.operate.runs.progress import PUBLISHED
from kbo_pipeline.stage.faults import FAULT_COLUMNS, Fault

OWNERS = ["team:register"]
"""Asset owners shown in the UI."""

PREVIEW_ROWS = 10
"""Rows in a preview."""

_LONGEST = 60  # characters of a text in a preview

_BOOKKEEPING = (
    dg.TableColumn("_snapshot_date", "DATE", "Day of the first extract with this row version."),
    dg.TableColumn("_extract_number", "INTEGER", "First extract with this row version."),
    dg.TableColumn(
        "_deleted_at_extract", "INTEGER", "First extract without it; NULL while it is current."
    ),
    dg.TableColumn("_is_current", "BOOLEAN", "Whether the newest extract has it."),
)
_STAGING = (
    dg.TableColumn("batch_number", "INTEGER", "Batch in which the row is applied."),
    dg.TableColumn("operation", "VARCHAR", "`delete` or `insert`."),
    dg.TableColumn("row_sequence", "BIGINT", "Position of the row in the file."),
)
_DRIFT = (
    dg.TableColumn("table", "VARCHAR", "The table that is compared."),
    dg.TableColumn("rows_in_zip", "BIGINT", "Rows in the Full."),
    dg.TableColumn("rows_in_register", "BIGINT", "Rows that the register had at the extract."),
    dg.TableColumn("only_in_zip", "BIGINT", "Rows that the register lacks."),
    dg.TableColumn("only_in_register", "BIGINT", "Rows that the Full lacks."),
)
_SEARCH = (
    ("number", "Number of the enterprise or of one of its units; five units are together."),
    ("name", "A name of any of them: without accents, capitals, punctuation and legal form."),
    ("place", "Postcodes and municipalities where it is; streets of those units."),
    ("zipcode", "Postcode of a valid address."),
    ("status", "KBO's code of its status."),
)
DRIFT_COLUMNS = tuple(column.name for column in _DRIFT)
_CHANGES = (
    ("table_name", "The table in which the change is seen."),
    ("kind", "The kind of change, such as `new` or `moved`; explained in docs/changes.md."),
    ("entity_number", "Number of the enterprise, establishment unit or branch."),
    ("enterprise_number", "Number of the enterprise that it is or belongs to."),
    ("name", "Its main name after the extract, or else before it."),
    ("before", "The old value, as text in KBO's codes; NULL if there was none."),
    ("after", "The new value."),
)

Verb = Literal["fetch", "stage", "apply", "publish"]


def tags(verb: Verb, table: Table | None = None) -> dict[str, str]:
    """The tags of an asset: which of the four verbs makes it, and of which table, if of one."""
    return {"kbo/verb": verb, **({"kbo/table": table.name} if table else {})}


def zip_metadata() -> dict[str, Any]:
    """The columns of the CSV files in a ZIP."""
    return _columns(
        dg.TableColumn(_csv_column(table, column), "text", column.description)
        for table in ALL_TABLES
        for column in table.columns
    )


def staging_metadata(table: Table, extract_zip: str, relation: str) -> dict[str, Any]:
    """The columns of a staging table, and those of the CSV file behind them.

    Args:
        table: the table.
        extract_zip: name of the asset with the ZIP.
        relation: name of the staging table.
    """
    return _columns(
        [*_STAGING, *map(_column, table.columns)],
        [(column.name, extract_zip, _csv_column(table, column)) for column in table.columns],
        relation,
    )


def register_metadata(table: Table, staging_asset: str) -> dict[str, Any]:
    """The columns of a register table, and the staged ones behind them.

    Args:
        table: the table.
        staging_asset: name of the asset with its staged rows.
    """
    return _columns(
        _register_columns(table),
        [(column.name, staging_asset, column.name) for column in table.columns],
        f"main.{table.name}",
    )


def published_metadata() -> dict[str, Any]:
    """The columns of all tables in the file that readers open."""
    columns = [(table, column) for table in ALL_TABLES for column in _register_columns(table)]
    return _columns(
        [_in_table(table, column) for table, column in columns],
        [(f"{table.name}.{column.name}", table.name, column.name) for table, column in columns],
    )


def export_metadata() -> dict[str, Any]:
    """The columns of the files of an export, but for the profile."""
    columns = [_in_table(t, _column(column)) for t in ALL_TABLES for column in t.columns]
    return _columns(columns, [(c.name, PUBLISHED.to_user_string(), c.name) for c in columns])


def search_metadata() -> dict[str, Any]:
    """What is looked for in the search index, as columns of its documents."""
    return _columns(dg.TableColumn(name, "VARCHAR", text) for name, text in _SEARCH)


def verification_metadata() -> dict[str, Any]:
    """The columns of the result of a comparison with a Full."""
    return _columns(_DRIFT)


def report_metadata() -> dict[str, Any]:
    """The columns of a change report's list."""
    keys = [f"{table.name}.{table.key}" for table in TABLES]
    owners = [f"{t.name}.{ENTERPRISE.key}" for t in TABLES if ENTERPRISE.key in t.column_names]
    origins = {"entity_number": keys, "enterprise_number": owners}
    return _columns(
        [dg.TableColumn(name, "VARCHAR", text) for name, text in _CHANGES],
        [
            (name, PUBLISHED.to_user_string(), origin)
            for name in origins
            for origin in origins[name]
        ],
    )


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


def preview(result: duckdb.DuckDBPyConnection) -> dg.TableMetadataValue:
    """The rows of a query that has just run, as a table of the UI; the query has a limit.

    Long texts are cut: the UI's columns are narrow.
    """
    rows = [[_cell(value, _LONGEST) for value in row] for row in result.fetchall()]
    return shown_table([name for name, *_ in result.description or ()], rows)


def shown_table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> dg.TableMetadataValue:
    """Rows as a table of the UI."""
    return dg.MetadataValue.table(
        records=[
            dg.TableRecord({n: _cell(value) for n, value in zip(names, row, strict=True)})
            for row in rows
        ],
        schema=dg.TableSchema([dg.TableColumn(name) for name in names]),
    )


def fault_table(faults: Sequence[Fault]) -> dg.TableMetadataValue:
    """The faults of an extract, as a table of the UI."""
    return shown_table(
        FAULT_COLUMNS, [[getattr(fault, name) for name in FAULT_COLUMNS] for fault in faults]
    )


def _columns(
    columns: Iterable[dg.TableColumn],
    origins: Iterable[tuple[str, str, str]] = (),
    relation: str | None = None,
) -> dict[str, Any]:
    """What is known of an asset before it is materialized.

    Args:
        columns: its columns.
        origins: columns, each with an asset and the column there that it is made from.
        relation: the name of its table.
    """
    deps: dict[str, list[dg.TableColumnDep]] = {}
    for name, asset, origin in origins:
        dep = dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=origin)
        deps.setdefault(name, []).append(dep)
    return {
        "dagster/column_schema": dg.TableSchema(list(columns)),
        **({"dagster/column_lineage": dg.TableColumnLineage(deps)} if deps else {}),
        **({"dagster/table_name": relation} if relation else {}),
    }


def _csv_column(table: Table, column: Column) -> str:
    return f"{table.name}.csv {column.csv_name}"


def _register_columns(table: Table) -> list[dg.TableColumn]:
    return [*map(_column, table.columns), *_BOOKKEEPING]


def _in_table(table: Table, column: dg.TableColumn) -> dg.TableColumn:
    return dg.TableColumn(
        f"{table.name}.{column.name}", column.type, column.description, tags=column.tags
    )


def _column(column: Column) -> dg.TableColumn:
    category = column.code_category
    if not category:
        return dg.TableColumn(column.name, column.type, column.description)
    return dg.TableColumn(
        column.name,
        column.type,
        f"{column.description} Explained in `code`: {category}.",
        tags={} if "{" in category else {"kbo/code_category": category},
    )


def _cell(value: Any, longest: int | None = None) -> str | int | float | None:
    if value is None or isinstance(value, int | float):
        return value
    return cut(str(value), longest) if longest else str(value)
