"""SQL that fills an extract's staging file and cuts it into batches."""

from collections.abc import Mapping, Sequence

from kbo_pipeline.core.extracts import ExtractType, Operation
from kbo_pipeline.core.sql import indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import CODE, TABLES, Column, Table
from kbo_pipeline.stage.faults import DATE_PATTERN, MAX_RECORD


def load_staged(
    table: Table, extract_type: ExtractType, columns: Mapping[Operation, Sequence[Column | None]]
) -> str:
    """Fills a staged table from the CSV files bound as `$delete` and `$insert`, in file order.

    Rows of an Update are put with their operation. Those of a Full are put as the register holds
    them, because they become the register where that is empty; `$date` and `$number` are bound.

    Args:
        table: the table.
        extract_type: what the extract is.
        columns: of each file, in its order; None for one that is left out.
    """
    rows = union_all(_read_csv(table, operation, file) for operation, file in columns.items())
    rows = rows or _no_rows(table)
    create = f"CREATE OR REPLACE TABLE {table.name} AS"
    if extract_type == "update":
        return f"{create}\n{rows}"
    return f"""{create}
SELECT * EXCLUDE (operation),
    $date::DATE AS _snapshot_date, $number::INTEGER AS _extract_number,
    NULL::INTEGER AS _deleted_at_extract, true AS _is_current
FROM (
    {indented(rows)}
)"""


def fingerprint(table: Table, rows: str) -> str:
    """Counts and hashes the rows of a query on a table."""
    return f"""SELECT count(*) AS row_count,
    coalesce(sum({_row_hash(table)}), 0)::VARCHAR AS row_hash
FROM (
    {indented(rows)}
)"""


def fingerprint_of_csv(table: Table, columns: Sequence[Column | None]) -> str:
    """What `fingerprint` finds in the CSV file bound as `$insert`, where each row counts once.

    Its third column says how many rows there are in all.

    Args:
        table: the table.
        columns: of the file, in its order; None for one that is left out.
    """
    return f"""SELECT count(*) AS row_count, coalesce(sum(row_hash), 0)::VARCHAR AS row_hash,
    coalesce(sum(times), 0)::BIGINT AS records
FROM (
    SELECT {_row_hash(table)} AS row_hash, count(*) AS times
    FROM (
        {indented(_read_csv(table, "insert", columns), by=8)}
    )
    GROUP BY ALL
)"""


def _row_hash(table: Table) -> str:
    return f"hash({listed(table.column_names, by=8)})"


def _no_rows(table: Table) -> str:
    values = (f"NULL::{c.type} AS {c.name}" for c in table.columns)
    return f"SELECT {listed(('NULL::VARCHAR AS operation', *values))}\nWHERE false"


def _read_csv(table: Table, operation: Operation, columns: Sequence[Column | None]) -> str:
    in_file = (
        f"'{f'unknown_{place}' if column is None else column.name}': 'VARCHAR'"
        for place, column in enumerate(columns)
    )
    values = (_value(c) if c in columns else f"NULL::{c.type} AS {c.name}" for c in table.columns)
    return f"""SELECT {listed((f"'{operation}' AS operation", *values))}
FROM read_csv(${operation},
    columns = {{{listed(in_file, by=8)}}},
    auto_detect = false, header = true, encoding = 'utf-8',
    delim = ',', quote = '"', escape = '"', nullstr = '', allow_quoted_nulls = true,
    max_line_size = {MAX_RECORD + 2}, strict_mode = true, null_padding = false,
    ignore_errors = false)"""


def _value(column: Column) -> str:
    """DuckDB's own dates would let `1-1-20` pass."""
    if column.type != "DATE":
        return column.name
    name = column.name
    return f"""CASE WHEN {name} IS NULL
            OR regexp_full_match({name},
                '{DATE_PATTERN}')
        THEN strptime({name}, '%d-%m-%Y')::DATE
        ELSE error('no date dd-mm-yyyy') END AS {name}"""


def of_operation(extract_type: ExtractType, operation: Operation) -> str:
    """The condition under which a staged row is of an operation."""
    return "true" if extract_type == "full" else f"operation = '{operation}'"


def staged_rows(table: Table, extract_type: ExtractType, operation: Operation) -> str:
    """Counts the rows that were staged."""
    return f"SELECT count(*) FROM {table.name} WHERE {of_operation(extract_type, operation)}"


def unusual_numbers(table: Table, extract_type: ExtractType) -> dict[Column, str]:
    """Counts, by column, the rows whose number is not of the kind that it usually is."""
    inserted = of_operation(extract_type, "insert")
    return {
        column: f"""SELECT count(*)
FROM {table.name}
WHERE {_is_not(column, column.usual_number)}
    AND {"true" if column.name == table.key else inserted}"""
        for column in table.columns
        if column.number
    }


def unsound_numbers(table: Table, extract_type: ExtractType, column: Column) -> str:
    """Counts the rows whose number is of no kind that the column may hold."""
    unusual = unusual_numbers(table, extract_type)[column]
    return f"{unusual}\n    AND {_is_not(column, column.allowed_number)}"


def missing_keys(table: Table) -> str:
    """Counts the rows without a key."""
    return f"SELECT count(*) FROM {table.name} WHERE {table.key} IS NULL"


def _is_not(column: Column, pattern: str) -> str:
    return f"""NOT coalesce(
        regexp_full_match({column.name},
            '{pattern}'),
        false)"""


def differing_rows(table: Table) -> str:
    """Counts the keys of which an extract brings several rows that are not the same."""
    same = "\n    AND ".join(
        f"s.{name} IS NOT DISTINCT FROM t.{name}" for name in table.column_names
    )
    superseded = _rows_superseded(table)
    return f"""SELECT count(DISTINCT s.{table.key})
FROM (
    SELECT *
    FROM {table.name}
    WHERE rowid IN ({superseded})
) s
ANTI JOIN (
    SELECT *
    FROM {table.name}
    WHERE rowid NOT IN ({superseded})
) t
    ON {same}"""


def _rows_superseded(table: Table) -> str:
    return f"SELECT row_id FROM superseded WHERE table_name = '{table.name}'"


CREATE_SUPERSEDED = "CREATE TABLE superseded (table_name VARCHAR, row_id BIGINT)"


def row_hashes(table: Table, extract_type: ExtractType) -> str:
    """The hashes of the inserted rows from `$first` to before `$next`; equal rows have the same.

    Where a key has one row at most, those of the keys. One part of `$parts` of them, so that one
    is in memory at a time.
    """
    return f"""SELECT row_hash
FROM (
    SELECT hash({indented(_identity(table))}) AS row_hash
    {indented(_inserted(table, extract_type))} AND rowid >= $first AND rowid < $next
)
WHERE row_hash % $parts::UBIGINT = $part::UBIGINT"""


def note_superseded(table: Table, extract_type: ExtractType) -> str:
    """Fills `superseded`: inserted rows that are there twice, but for the first of them.

    Where a key has one row at most, the last one of a key supersedes those before. Only rows are
    compared whose hash is among `$several`.
    """
    identity = _identity(table)
    stays = "max(row_id)" if table.unique_key else "min(row_id)"
    repeated = f"""SELECT rowid AS row_id, {identity}
{_inserted(table, extract_type)}
    AND hash({indented(identity)})
        IN (SELECT unnest($several::UBIGINT[]))"""
    query = f"""SELECT '{table.name}', row_id
FROM repeated
WHERE row_id NOT IN (
    SELECT {stays}
    FROM repeated
    GROUP BY {indented(identity)}
)"""
    return (
        f"INSERT INTO superseded\n{with_queries({'repeated': repeated}, query, materialized=True)}"
    )


def _identity(table: Table) -> str:
    return table.key if table.unique_key else listed(table.column_names)


def _inserted(table: Table, extract_type: ExtractType) -> str:
    return f"FROM {table.name}\nWHERE {of_operation(extract_type, 'insert')}"


def count_along_axis(step: int) -> str:
    """Makes `axis`: how many rows of an extract speak of each entity number, in their order.

    Args:
        step: one row in so many is looked at and stands for all of them, in the order of the
            files: each time the same ones.
    """
    looked_at = union_all(
        f"SELECT {t.key} AS entity_number FROM {t.name} WHERE rowid % {step:d} = 0" for t in TABLES
    )
    return f"""CREATE OR REPLACE TEMP TABLE axis AS
SELECT entity_number, {step:d} * count(*) AS records
FROM (
    {indented(looked_at)}
)
GROUP BY ALL
ORDER BY entity_number"""


RECORDS_ALONG_AXIS = "SELECT records FROM temp.main.axis ORDER BY rowid"


def entities_at(places: Sequence[int]) -> str:
    """The entity numbers at these places of `axis`, in order."""
    return f"""SELECT entity_number
FROM temp.main.axis
WHERE rowid IN (
    {listed(str(int(place)) for place in places)}
)
ORDER BY rowid"""


CREATE_BATCH = """
CREATE TABLE batch (
    batch_number INTEGER NOT NULL, first_number VARCHAR, next_number VARCHAR
)
"""


def batch_number(key: str, batches: int) -> str:
    """The number of the batch that a key is in; binds `$first2`, `$first3`, ..., their first keys.

    A tree of comparisons: a join would sort all rows.
    """

    def among(lowest: int, highest: int, depth: int) -> str:
        if lowest == highest:
            return str(lowest)
        middle = (lowest + highest + 1) // 2
        below, above = among(lowest, middle - 1, depth + 1), among(middle, highest, depth + 1)
        line = " " if highest - lowest == 1 else "\n" + "  " * depth
        return f"CASE WHEN {key} < $first{middle}{line}THEN {below}{line}ELSE {above} END"

    return f"{among(1, batches, 1)}::INTEGER"


def count_by_batch(extract_type: ExtractType, batches: int) -> str:
    """Makes `batch_records`: rows by table, batch and operation, and how many are superseded.

    Takes and binds what `batch_number` does.
    """
    operation = "'insert'" if extract_type == "full" else "operation"
    counts = union_all(
        f"""SELECT '{t.name}' AS table_name, {kind} AS operation, {counted},
    {indented(batch_number(t.key, batches))} AS batch_number
FROM {t.name}
{where}
GROUP BY ALL"""
        for t in TABLES
        for kind, counted, where in (
            (operation, "count(*) AS records, 0 AS superseded", ""),
            ("'insert'", "0, count(*)", f"WHERE rowid IN ({_rows_superseded(t)})"),
        )
    )
    return f"""CREATE TABLE batch_records AS
SELECT table_name, batch_number, operation,
    sum(records)::BIGINT AS records_count, sum(superseded)::BIGINT AS superseded_count
FROM (
    {indented(counts)}
)
GROUP BY ALL
HAVING records_count > 0"""


CREATE_MEMBER = """
CREATE TABLE member (
    name VARCHAR, table_name VARCHAR, operation VARCHAR, records_count BIGINT,
    rejected_count BIGINT
)
"""
"""The CSV files: their records without the header, and how many of these are set aside."""

NOTE_REJECTED = """
INSERT INTO rejected_row
SELECT $key, unnest($files::VARCHAR[]), unnest($lines::BIGINT[]),
    unnest($raws::VARCHAR[]), unnest($columns::VARCHAR[]), unnest($reasons::VARCHAR[])
"""
"""Notes some of them, whose values are bound as lists."""

CREATE_EXTRACT = """
CREATE TABLE extract (
    extract_key VARCHAR, extract_number INTEGER, extract_type VARCHAR, snapshot_date DATE,
    extract_timestamp TIMESTAMP, version VARCHAR, source_file VARCHAR, sha256 VARCHAR,
    schema_version INTEGER
)
"""

READ_EXTRACT = """
SELECT extract_number, extract_type, snapshot_date, extract_timestamp, version, source_file, sha256
FROM staging.extract
"""

READ_VERSION = "SELECT schema_version FROM staging.extract"


def staging_view(table: Table, extract_type: ExtractType) -> str:
    """Makes `import_staging_<table>`, which shows each staged row with its batch.

    The batch is found by the row's place on the axis and the sequence is the row's place in the
    file: stored as columns, both would double the time of loading. Row by row, so that who looks at
    some rows, or counts them, does not wait for the batches of all.
    """
    operation = "'insert' AS operation" if extract_type == "full" else "s.operation"
    batch, starts = "NULL::INTEGER", ""
    if table is not CODE:
        batch = f"len(list_filter(b.starts, lambda start: start <= s.{table.key}))::INTEGER"
        starts = (
            "\nCROSS JOIN (SELECT list(coalesce(first_number, '')) AS starts FROM main.batch) b"
        )
    columns = (f"s.{name}" for name in table.column_names)
    return f"""CREATE VIEW import_staging_{table.name} AS
SELECT {batch} AS batch_number,
    {listed((operation, "s.row_sequence", *columns))}
FROM (SELECT rowid AS row_sequence, * FROM main.{table.name}) s{starts}"""


def count_staged(table: Table) -> str:
    """Counts the staged rows, deletes and inserts."""
    return f"SELECT '{table.name}', count(*) FROM staging.main.{table.name}"
