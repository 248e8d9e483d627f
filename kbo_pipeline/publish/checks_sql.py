"""SQL that looks for rows of the register that contradict each other, or what KBO documents.

A query for offences returns a row for each; its last column, `occurrences`, says how many rows of
the table it stands for.
`source` is what a query looks at: a table of the register, or the part of it that an extract
touches.
"""

import re
from collections.abc import Sequence

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.sql import indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import ENTERPRISE_NUMBER, ESTABLISHMENT_NUMBER, TABLES, Column, Table
from kbo_pipeline.stage.sql import of_operation

TOUCHED = "temp.main.touched"
"""The numbers of all entities of which an extract opened or closed a row, in any table."""

_DIGITS_CHECKED = {*ENTERPRISE_NUMBER, *ESTABLISHMENT_NUMBER}


def part(table: Table) -> str:
    """The rows of a table that speak of touched entities."""
    return f"temp.main.part_of_{table.name}"


def references(table: Table) -> list[Column]:
    """The columns that hold the number of an entity which another row must be about."""
    return [c for c in number_columns(table) if not (table.unique_key and c.name == table.key)]


def number_columns(table: Table) -> list[Column]:
    """The columns that hold numbers of entities."""
    return [column for column in table.columns if column.number]


def code_columns(table: Table) -> list[Column]:
    """The columns whose values `code` explains."""
    return [column for column in table.columns if column.code_category]


def date_columns(table: Table) -> list[Column]:
    """The columns that hold dates."""
    return [column for column in table.columns if column.type == "DATE"]


def create_touched() -> str:
    """Makes `TOUCHED`; binds `$number`."""
    # Two scans rather than an OR: zone maps answer each.
    numbers = union_all(
        f"SELECT {column.name} AS number FROM {table.name} WHERE {when} = $number"
        for table in TABLES
        for column in number_columns(table)
        for when in ("_extract_number", "_deleted_at_extract")
    )
    return f"""CREATE OR REPLACE TEMP TABLE touched AS
SELECT DISTINCT number
FROM (
    {indented(numbers)}
)"""


def create_part(table: Table) -> str:
    """Makes `part(table)`."""
    touched = "\n    OR ".join(
        f"{column.name} IN (SELECT number FROM {TOUCHED})" for column in number_columns(table)
    )
    return f"""CREATE OR REPLACE TEMP TABLE part_of_{table.name} AS
SELECT *
FROM {table.name}
WHERE {touched}"""


def shared_keys(table: Table, source: str) -> str:
    """Keys with more than one current row, of a table where that must not be."""
    return f"""SELECT {table.key}, count(*) AS current_rows, 1 AS occurrences
FROM {source}
WHERE _is_current
GROUP BY {table.key}
HAVING count(*) > 1"""


def contradictions(table: Table, source: str, *, is_counted: bool) -> str:
    """Row versions that overlap another one of the same row, or end before they begin.

    Binds `$number`, that of the newest extract.

    Args:
        table: the table.
        source: what is looked at.
        is_counted: another check knows how many rows are current; then rows that are there twice
            are looked for only among keys that have rows of several extracts.
    """
    key, row = table.key, listed(table.column_names, by=8)
    # In a register of one extract there is none: nothing is grouped then.
    several = f"""SELECT {key}
FROM {source}
WHERE (SELECT min(_extract_number) <> max(_extract_number) FROM {source})
GROUP BY ALL
HAVING min(_extract_number) <> max(_extract_number)"""
    of_several = f"{key} IN (\n        {indented(several, 8)}\n    )" if is_counted else "true"
    # Most rows have one version: only the others are compared.
    repeated = f"""SELECT hash({row})
FROM {source}
WHERE {of_several}
GROUP BY 1
HAVING count(*) > 1"""
    versions = f"""SELECT uuid() AS row_id, _extract_number, _deleted_at_extract,
    {listed(table.column_names)}
FROM {source}
WHERE {of_several}
    AND hash({row}) IN (
        {indented(repeated, 8)}
    )"""
    same = "\n    AND ".join(
        f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in table.column_names[1:]
    )
    query = f"""SELECT a.{key}, a._extract_number, a._deleted_at_extract,
    min(b._extract_number) AS next_extract_number, 1 AS occurrences
FROM versions a
JOIN versions b
    ON a.{key} = b.{key}
    AND {same}
    AND (a._extract_number, a.row_id) < (b._extract_number, b.row_id)
    AND b._extract_number < coalesce(a._deleted_at_extract, b._extract_number + 1)
GROUP BY a.row_id, a.{key}, a._extract_number, a._deleted_at_extract
UNION ALL
SELECT {key}, _extract_number, _deleted_at_extract, NULL, 1
FROM {source}
WHERE _deleted_at_extract <= _extract_number
    OR _is_current <> (_deleted_at_extract IS NULL)
    OR greatest(_extract_number, _deleted_at_extract) > $number"""
    return with_queries({"versions": versions}, query, materialized=True)


def without_entity(table: Table, source: str, *, is_part: bool) -> str:
    """Current rows that speak of an entity which is not current.

    A part holds rows of untouched entities too, but not those entities.
    """
    return union_all(
        f"""SELECT '{column.name}' AS column_name, c.{column.name} AS number, 1 AS occurrences
FROM {source} c
ANTI JOIN (
    {indented(_entities(column, is_part=is_part))}
) e ON e.number = c.{column.name}
WHERE c._is_current"""
        + (f"\n    AND c.{column.name} IN (SELECT number FROM {TOUCHED})" if is_part else "")
        for column in references(table)
    )


def _entities(column: Column, *, is_part: bool) -> str:
    """The current entities that a column may speak of."""
    return union_all(
        f"SELECT {table.key} AS number FROM {part(table) if is_part else table.name}"
        " WHERE _is_current"
        for table in TABLES
        if table.unique_key and {*table.columns[0].number} <= {*column.number}
    )


def unknown_codes(table: Table, source: str) -> str:
    """Codes in current rows that `code` does not explain."""
    columns = code_columns(table)
    parameters = {name for c in columns for name in re.findall(r"{(\w+)}", c.code_category or "")}
    grouped = listed(sorted({c.name for c in columns} | parameters))
    used = f"""SELECT {grouped},
    min({table.key}) AS example, count(*) AS used_by
FROM {source}
WHERE _is_current
GROUP BY ALL"""
    codes = union_all(
        f"""SELECT '{c.name}' AS column_name, {_category(c)} AS category, {c.name} AS code,
    example, used_by
FROM used
WHERE {c.name} IS NOT NULL"""
        for c in columns
    )
    query = f"""SELECT u.column_name, u.category, u.code, min(u.example) AS example,
    sum(u.used_by)::BIGINT AS rows_with, sum(u.used_by) AS occurrences
FROM (
    {indented(codes)}
) u
ANTI JOIN (SELECT category, code FROM code WHERE _is_current) k
    ON k.category = u.category AND k.code = u.code
GROUP BY ALL"""
    return with_queries({"used": used}, query, materialized=True)


def _category(column: Column) -> str:
    """The category of a value as an expression: a part in braces is the row's own value."""
    parts = re.split(r"{(\w+)}", column.code_category or "")
    texts = [f"'{part}'" if i % 2 == 0 else part for i, part in enumerate(parts) if part]
    return " || ".join(texts)


def uses_category(table: Table, category: str) -> bool:
    """Tells whether a table may hold codes of a category."""
    return any(
        re.fullmatch(re.sub(r"{\w+}", ".*", column.code_category or ""), category)
        for column in code_columns(table)
    )


CATEGORIES_WITH_LESS = """
SELECT DISTINCT category
FROM (
    SELECT category, code FROM code WHERE _deleted_at_extract = $number
    EXCEPT
    SELECT category, code FROM code WHERE _is_current
)
"""
"""The categories of which an extract takes a code away."""


def wrong_check_digits(table: Table, source: str) -> str:
    """Numbers in current rows of which the last two digits are not 97 - (the first eight % 97).

    Each number once, but only of those: of all, they would not fit into a gigabyte.
    """
    kinds = ", ".join(f"'{digit}'" for digit in sorted(_DIGITS_CHECKED))
    numbers = union_all(
        f"""SELECT '{column.name}' AS column_name, {column.name} AS number
FROM {source}
WHERE _is_current AND left({column.name}, 1) IN ({kinds})"""
        for column in number_columns(table)
        if not _DIGITS_CHECKED.isdisjoint(column.number)
    )
    return f"""SELECT DISTINCT column_name, number, 1 AS occurrences
FROM (
    SELECT *, TRY_CAST(replace(number, '.', '') AS BIGINT) AS digits
    FROM (
        {indented(numbers, 8)}
    )
)
WHERE digits IS NULL OR digits % 100 <> 97 - (digits // 100) % 97"""


def has_check_digits(table: Table) -> bool:
    """Tells whether check digits are looked at in a table: where entities are, not their rows."""
    return table.unique_key and any(
        not _DIGITS_CHECKED.isdisjoint(column.number) for column in table.columns
    )


def implausible_dates(table: Table, source: str) -> str:
    """Dates in current rows that lie out of bounds; binds `$first` and `$last`."""
    return union_all(
        f"""SELECT {table.key}, '{column.name}' AS column_name, {column.name} AS date,
    1 AS occurrences
FROM {source}
WHERE _is_current AND ({column.name} < $first OR {column.name} > $last)"""
        for column in date_columns(table)
    )


def counted(query: str, sample: int) -> str:
    """The first offences of a query in order, each with the occurrences of all as last column.

    No window: in 1.5.5, one over few rows ends DuckDB now and then (duckdb issue 25713).
    """
    first = f"""SELECT *, (SELECT sum(occurrences)::BIGINT FROM offences) AS total
FROM offences
ORDER BY ALL
LIMIT {sample}"""
    return with_queries({"offences": query}, first, materialized=True)


def count_rows(table: Table) -> str:
    """Current rows, and those that an extract opened and closed; binds `$number`."""
    return f"""SELECT
    (SELECT count(*) FROM {table.name} WHERE _is_current),
    (SELECT count(*) FROM {table.name} WHERE _extract_number = $number),
    (SELECT count(*) FROM {table.name} WHERE _deleted_at_extract = $number)"""


PUBLISHED_BEFORE = """
SELECT id, snapshot_date
FROM import_jobs
WHERE status = 'completed' AND extract_number < $number AND snapshot_date > $date
ORDER BY extract_number DESC
LIMIT 1
"""
"""The newest published extract before one whose data is of a later day than `$date`."""

SAME_WEEKDAY = """
SELECT extract_number
FROM import_jobs
WHERE status = 'completed' AND extract_type = 'update' AND extract_number < $number
    AND isodow(snapshot_date) = isodow($date)
ORDER BY extract_number DESC
LIMIT $extracts
"""
"""The newest published Updates before an extract whose snapshot is of the same weekday."""


def rows_of_extracts(table: Table, numbers: Sequence[int]) -> str:
    """How many rows each of these extracts opened and closed."""
    written = listed(str(int(number)) for number in numbers)  # no parameter: for the zone maps
    opened, closed = (
        f"""SELECT {column} AS n, count(*) AS rows_with
FROM {table.name}
WHERE {column} IN ({written})
GROUP BY ALL"""
        for column in ("_extract_number", "_deleted_at_extract")
    )
    query = f"""SELECT coalesce(o.rows_with, 0), coalesce(c.rows_with, 0)
FROM unnest([{written}]) l(n)
LEFT JOIN opened o ON o.n = l.n
LEFT JOIN closed c ON c.n = l.n"""
    return with_queries({"opened": opened, "closed": closed}, query)


LEDGER_OF_EXTRACT = """
SELECT table_name, operation, count(*), bool_and(status = 'completed'),
    sum(records_count)::BIGINT, sum(rows_opened)::BIGINT, sum(rows_closed)::BIGINT,
    sum(rows_unchanged)::BIGINT, sum(duplicates_dropped)::BIGINT
FROM import_job_batches
WHERE job_id = $id
GROUP BY ALL
"""
"""What the ledger says of each table and operation of an extract."""

STAGED_MEMBERS = """
SELECT table_name, operation, records_count, rejected_count
FROM staging.member
"""
"""How many records each CSV file of the staged extract had, and how many are set aside."""

REJECTED_ROWS = """
SELECT file, line, column_name, reason
FROM rejected_row
WHERE extract = $key
ORDER BY file, line
"""
"""Where the records of an extract stood that are set aside, and why; binds `$key`."""


def staged_rows(key: ExtractKey) -> str:
    """How many rows an attached staging file holds, by table and operation."""
    return union_all(
        f"""SELECT '{table.name}', '{operation}', count(*)
FROM staging.main.{table.name}
WHERE {of_operation(key.type, operation)}"""
        for table in TABLES
        for operation in key.operations
    )
