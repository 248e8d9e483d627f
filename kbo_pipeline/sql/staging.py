"""SQL that fills an extract's staging file and cuts it into batches."""

from collections.abc import Mapping, Sequence

from kbo_pipeline.extracts import Operation
from kbo_pipeline.faults import DATE_PATTERN, MAX_RECORD
from kbo_pipeline.tables import CODE, TABLES, Column, Table, number_pattern


def load_staged(table: Table, columns: Mapping[Operation, Sequence[Column | None]]) -> str:
    """Fills `staged.<table>` from the CSV files bound as `$delete` and `$insert`, in file order.

    Args:
        table: the table.
        columns: of each file, in its order; None for one that is left out.
    """
    selects = [_read_csv(table, operation, found) for operation, found in columns.items()]
    types = ", ".join(f"{c.name} {c.type}" for c in table.columns)
    create = f"CREATE TABLE staged.{table.name}"
    if not selects:
        return f"{create} (operation VARCHAR, {types})"
    return f"{create} AS {' UNION ALL '.join(selects)}"


def _read_csv(table: Table, operation: Operation, columns: Sequence[Column | None]) -> str:
    in_file = ", ".join(
        f"'{f'unknown_{place}' if column is None else column.name}': 'VARCHAR'"
        for place, column in enumerate(columns)
    )
    values = ", ".join(
        _value(c) if c in columns else f"NULL::{c.type} AS {c.name}" for c in table.columns
    )
    return (
        f"SELECT '{operation}' AS operation, {values}"
        f" FROM read_csv(${operation}, columns = {{{in_file}}}, auto_detect = false, header = true,"
        " delim = ',', quote = '\"', escape = '\"', nullstr = '', allow_quoted_nulls = true,"
        f" max_line_size = {MAX_RECORD}, strict_mode = true, null_padding = false,"
        " ignore_errors = false, encoding = 'utf-8')"
    )


def _value(column: Column) -> str:
    """DuckDB's own dates would let `1-1-20` pass."""
    if column.type != "DATE":
        return column.name
    name = column.name
    return (
        f"CASE WHEN {name} IS NULL OR regexp_full_match({name}, '{DATE_PATTERN}')"
        f" THEN strptime({name}, '%d-%m-%Y')::DATE ELSE error('no date dd-mm-yyyy') END AS {name}"
    )


def staged_rows(table: Table, operation: Operation) -> str:
    """Counts the rows that were staged."""
    return f"SELECT count(*) FROM staged.{table.name} WHERE operation = '{operation}'"


def unsound_values(table: Table) -> list[str]:
    """Counts, once by statement, rows or keys that do not name what their column names.

    `records_of_entity` must be there: most rows share their key with others.
    """
    statements = [
        f"SELECT count(*) FROM records_of_entity WHERE table_name = '{table.name}'"
        f" AND {_is_unsound(column, 'entity_number')}"
        if column.name == table.key
        else f"SELECT count(*) FROM staged.{table.name} WHERE operation = 'insert'"
        f" AND {_is_unsound(column, column.name)}"
        for column in table.columns
        if column.number
    ]
    if table.columns[0].number:
        return statements
    return [*statements, f"SELECT count(*) FROM staged.{table.name} WHERE {table.key} IS NULL"]


def _is_unsound(column: Column, value: str) -> str:
    pattern = number_pattern(column.number)
    return f"NOT coalesce(regexp_full_match({value}, '{pattern}'), false)"


def differing_rows(table: Table) -> str:
    """Counts the keys of which an extract brings several rows that are not the same."""
    return (
        "SELECT count(*) FROM (SELECT 1 FROM ("
        f"SELECT DISTINCT {', '.join(table.column_names)} FROM staged.{table.name}"
        f" WHERE operation = 'insert' AND {table.key} IN (SELECT entity_number"
        f" FROM records_of_entity WHERE table_name = '{table.name}' AND operation = 'insert'"
        f" AND records_count > 1)) GROUP BY {table.key} HAVING count(*) > 1)"
    )


def count_by_entity() -> str:
    """Makes `records_of_entity`: how many rows of an extract speak of each entity number."""
    counts = " UNION ALL ".join(
        f"SELECT '{t.name}' AS table_name, operation, {t.key} AS entity_number,"
        f" count(*) AS records_count FROM staged.{t.name} GROUP BY ALL"
        for t in TABLES
    )
    return f"CREATE OR REPLACE TEMP TABLE records_of_entity AS {counts}"


COUNT_ALONG_AXIS = """
CREATE OR REPLACE TEMP TABLE axis AS
SELECT entity_number, sum(sum(records_count)) OVER (ORDER BY entity_number)::BIGINT AS records_until
FROM records_of_entity GROUP BY entity_number ORDER BY entity_number
"""

AXIS_TOTAL = "SELECT coalesce(max(records_until), 0) FROM axis"

NEXT_CUT = "SELECT min(records_until) FROM axis WHERE records_until >= $reached + $target"

FIRST_AFTER_CUT = "SELECT min(entity_number) FROM axis WHERE records_until > $reached"

CREATE_BATCH = """
CREATE TABLE batch (
    batch_number INTEGER NOT NULL, first_number VARCHAR, next_number VARCHAR
)
"""

COUNT_BY_BATCH = """
CREATE TABLE batch_records AS
SELECT table_name, batch_number, operation, sum(records_count)::BIGINT AS records_count
FROM records_of_entity
ASOF JOIN batch ON entity_number >= coalesce(first_number, '')
GROUP BY ALL
"""

CREATE_EXTRACT = """
CREATE TABLE extract (
    extract_key VARCHAR, extract_number INTEGER, extract_type VARCHAR, snapshot_date DATE,
    extract_timestamp TIMESTAMP, version VARCHAR, source_file VARCHAR, sha256 VARCHAR
)
"""


def staging_view(table: Table) -> str:
    """Makes `import_staging_<table>`, which shows each staged row with its batch.

    The batch is found by the row's place on the axis and the sequence is the row's place in the
    file: stored as columns, both would double the time of loading.
    """
    columns = ", ".join(f"s.{name}" for name in table.column_names)
    if table is CODE:
        batch, join = "NULL::INTEGER", ""
    else:
        batch = "b.batch_number"
        join = f" ASOF JOIN main.batch b ON s.{table.key} >= coalesce(b.first_number, '')"
    return (
        f"CREATE VIEW import_staging_{table.name} AS SELECT {batch} AS batch_number,"
        f" s.operation, s.row_sequence, {columns}"
        f" FROM (SELECT rowid AS row_sequence, * FROM staged.{table.name}) s{join}"
    )
