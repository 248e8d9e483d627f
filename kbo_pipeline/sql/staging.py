"""SQL that fills an extract's staging file and cuts it into batches."""

from collections.abc import Collection

from kbo_pipeline.extracts import Operation
from kbo_pipeline.tables import CODE, TABLES, Table


def load_staged(table: Table, operations: Collection[Operation]) -> str:
    """Fills `staged.<table>` from the CSV files bound as `$delete` and `$insert`, in file order."""
    selects = [_read_csv(table, operation) for operation in operations]
    columns = ", ".join(f"{c.name} {c.type}" for c in table.columns)
    create = f"CREATE TABLE staged.{table.name}"
    if not selects:
        return f"{create} (operation VARCHAR, {columns})"
    return f"{create} AS {' UNION ALL '.join(selects)}"


def _read_csv(table: Table, operation: Operation) -> str:
    in_file = table.columns[:1] if operation == "delete" else table.columns
    types = ", ".join(f"'{c.name}': '{c.type}'" for c in in_file)
    absent = "".join(f", NULL::{c.type} AS {c.name}" for c in table.columns[len(in_file) :])
    return (
        f"SELECT '{operation}' AS operation, {', '.join(c.name for c in in_file)}{absent}"
        f" FROM read_csv(${operation}, columns = {{{types}}}, auto_detect = false, header = true,"
        " delim = ',', quote = '\"', escape = '\"', nullstr = '', allow_quoted_nulls = true,"
        " dateformat = '%d-%m-%Y', strict_mode = true, null_padding = false,"
        " ignore_errors = false, encoding = 'utf-8')"
    )


def staged_records(table: Table, operation: Operation) -> str:
    """Counts the rows that were staged, and those without a key."""
    return (
        f"SELECT count(*), count(*) - count({table.key}) FROM staged.{table.name}"
        f" WHERE operation = '{operation}'"
    )


def staged_line_breaks(table: Table, operation: Operation) -> str:
    """Counts the line feeds inside the values that were staged."""
    texts = [c.name for c in table.columns if c.type == "VARCHAR"]
    feeds = " + ".join(
        f"coalesce(length({c}) - length(replace({c}, chr(10), '')), 0)" for c in texts
    )
    return (
        f"SELECT coalesce(sum({feeds}), 0)::BIGINT FROM staged.{table.name}"
        f" WHERE operation = '{operation}'"
    )


def count_by_entity() -> str:
    """Makes `records_of_entity`: how many rows of an extract speak of each entity number."""
    counts = " UNION ALL ".join(
        f"SELECT '{t.name}' AS table_name, operation, {t.key} AS entity_number,"
        f" count(*) AS records_count FROM staged.{t.name} GROUP BY ALL"
        for t in TABLES
    )
    return f"CREATE TEMP TABLE records_of_entity AS {counts}"


COUNT_ALONG_AXIS = """
CREATE TEMP TABLE axis AS
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
