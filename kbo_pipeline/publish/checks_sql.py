"""SQL that looks for rows of the register that contradict each other, or what KBO documents.

A query for offences returns one row for each, at last `occurrences`: how many rows it stands for.
`source` is what a query looks at: a table of the register, or the part of it that an extract
touches.
"""

import re
from collections.abc import Sequence

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ENTERPRISE_NUMBER, ESTABLISHMENT_NUMBER, TABLES, Column, Table
from kbo_pipeline.stage.sql import of_operation

TOUCHED = "temp.main.touched"
"""The numbers of all entities of which an extract opened or closed a row, in any table."""

_DIGITS_CHECKED = {*ENTERPRISE_NUMBER, *ESTABLISHMENT_NUMBER}


def whole(table: Table) -> str:
    """A table of the register, all of it."""
    return table.name


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
    numbers = " UNION ALL ".join(
        f"SELECT {column.name} AS number FROM {whole(table)} WHERE {when} = $number"
        for table in TABLES
        for column in number_columns(table)
        for when in ("_extract_number", "_deleted_at_extract")
    )
    return f"CREATE OR REPLACE TEMP TABLE touched AS SELECT DISTINCT number FROM ({numbers})"


def create_part(table: Table) -> str:
    """Makes `part(table)`."""
    touched = " OR ".join(
        f"{column.name} IN (SELECT number FROM {TOUCHED})" for column in number_columns(table)
    )
    return (
        f"CREATE OR REPLACE TEMP TABLE part_of_{table.name} AS"
        f" SELECT * FROM {whole(table)} WHERE {touched}"
    )


def shared_keys(table: Table, source: str) -> str:
    """Keys with more than one current row, of a table where that must not be."""
    return (
        f"SELECT {table.key}, count(*) AS current_rows, 1 AS occurrences FROM {source}"
        f" WHERE _is_current GROUP BY {table.key} HAVING count(*) > 1"
    )


def contradictions(table: Table, source: str, *, is_counted: bool) -> str:
    """Row versions that overlap another one of the same row, or end before they begin.

    Binds `$number`, that of the newest extract.

    Args:
        table: the table.
        source: what is looked at.
        is_counted: another check knows how many rows are current; then rows that are there twice
            are looked for only among keys that have rows of several extracts.
    """
    row = ", ".join(table.column_names)
    # In a register of one extract there is none: nothing is grouped then.
    of_several = (
        f"{table.key} IN (SELECT {table.key} FROM {source}"
        f" WHERE (SELECT min(_extract_number) <> max(_extract_number) FROM {source})"
        " GROUP BY ALL HAVING min(_extract_number) <> max(_extract_number))"
        if is_counted
        else "true"
    )
    same = " AND ".join(
        f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in table.column_names[1:]
    )
    # Most rows have one version: only the others are compared.
    versions = (
        f"SELECT uuid() AS row_id, {row}, _extract_number, _deleted_at_extract"
        f" FROM {source} WHERE {of_several} AND hash({row}) IN"
        f" (SELECT hash({row}) FROM {source} WHERE {of_several} GROUP BY 1 HAVING count(*) > 1)"
    )
    return (
        f"WITH versions AS MATERIALIZED ({versions})"
        f" SELECT a.{table.key}, a._extract_number, a._deleted_at_extract,"
        " min(b._extract_number) AS next_extract_number, 1 AS occurrences"
        f" FROM versions a JOIN versions b ON a.{table.key} = b.{table.key} AND {same}"
        " AND (a._extract_number, a.row_id) < (b._extract_number, b.row_id)"
        " AND b._extract_number < coalesce(a._deleted_at_extract, b._extract_number + 1)"
        f" GROUP BY a.row_id, a.{table.key}, a._extract_number, a._deleted_at_extract"
        f" UNION ALL SELECT {table.key}, _extract_number, _deleted_at_extract, NULL, 1"
        f" FROM {source} WHERE _deleted_at_extract <= _extract_number"
        " OR _is_current <> (_deleted_at_extract IS NULL)"
        " OR greatest(_extract_number, _deleted_at_extract) > $number"
    )


def without_entity(table: Table, source: str, *, is_part: bool) -> str:
    """Current rows that speak of an entity which is not current.

    A part holds rows of untouched entities too, but not those entities.
    """
    looked_at = f" AND c.$ IN (SELECT number FROM {TOUCHED})" if is_part else ""
    return " UNION ALL ".join(
        f"SELECT '{column.name}' AS column_name, c.{column.name} AS number, 1 AS occurrences"
        f" FROM {source} c ANTI JOIN ({_entities(column, is_part=is_part)}) e"
        f" ON e.number = c.{column.name}"
        f" WHERE c._is_current{looked_at.replace('$', column.name)}"
        for column in references(table)
    )


def _entities(column: Column, *, is_part: bool) -> str:
    """The current entities that a column may speak of."""
    return " UNION ALL ".join(
        f"SELECT {table.key} AS number FROM {part(table) if is_part else whole(table)}"
        " WHERE _is_current"
        for table in TABLES
        if table.unique_key and {*table.columns[0].number} <= {*column.number}
    )


def unknown_codes(table: Table, source: str) -> str:
    """Codes in current rows that `code` does not explain."""
    columns = code_columns(table)
    parameters = {name for c in columns for name in re.findall(r"{(\w+)}", c.code_category or "")}
    grouped = ", ".join(sorted({c.name for c in columns} | parameters))
    used = " UNION ALL ".join(
        f"SELECT '{c.name}' AS column_name, {_category(c)} AS category, {c.name} AS code,"
        f" example, used_by FROM used WHERE {c.name} IS NOT NULL"
        for c in columns
    )
    return (
        f"WITH used AS MATERIALIZED (SELECT {grouped}, min({table.key}) AS example,"
        f" count(*) AS used_by FROM {source} WHERE _is_current GROUP BY ALL)"
        " SELECT u.column_name, u.category, u.code, min(u.example) AS example,"
        f" sum(u.used_by)::BIGINT AS rows_with, sum(u.used_by) AS occurrences FROM ({used}) u"
        " ANTI JOIN (SELECT category, code FROM code WHERE _is_current) k"
        " ON k.category = u.category AND k.code = u.code GROUP BY ALL"
    )


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
SELECT DISTINCT category FROM (
    SELECT category, code FROM code WHERE _deleted_at_extract = $number
    EXCEPT SELECT category, code FROM code WHERE _is_current)
"""
"""The categories of which an extract takes a code away."""


def wrong_check_digits(table: Table, source: str) -> str:
    """Numbers in current rows of which the last two digits are not 97 - (the first eight % 97).

    Each number once, but only of those: of all, they would not fit into a gigabyte.
    """
    kinds = ", ".join(f"'{digit}'" for digit in sorted(_DIGITS_CHECKED))
    numbers = " UNION ALL ".join(
        f"SELECT '{column.name}' AS column_name, {column.name} AS number FROM {source}"
        f" WHERE _is_current AND left({column.name}, 1) IN ({kinds})"
        for column in number_columns(table)
        if not _DIGITS_CHECKED.isdisjoint(column.number)
    )
    return (
        "SELECT DISTINCT column_name, number, 1 AS occurrences FROM ("
        "SELECT *, TRY_CAST(replace(number, '.', '') AS BIGINT) AS digits"
        f" FROM ({numbers})) WHERE digits IS NULL OR digits % 100 <> 97 - (digits // 100) % 97"
    )


def has_check_digits(table: Table) -> bool:
    """Tells whether check digits are looked at in a table: where entities are, not their rows."""
    return table.unique_key and any(
        not _DIGITS_CHECKED.isdisjoint(column.number) for column in table.columns
    )


def implausible_dates(table: Table, source: str) -> str:
    """Dates in current rows that lie out of bounds; binds `$first` and `$last`."""
    return " UNION ALL ".join(
        f"SELECT {table.key}, '{column.name}' AS column_name, {column.name} AS date,"
        f" 1 AS occurrences FROM {source}"
        f" WHERE _is_current AND ({column.name} < $first OR {column.name} > $last)"
        for column in date_columns(table)
    )


def counted(query: str, sample: int) -> str:
    """The first offences of a query in order, each with the occurrences of all as last column.

    No window: in 1.5.5, one over few rows ends DuckDB now and then (duckdb issue 25713).
    """
    return (
        f"WITH offences AS MATERIALIZED ({query})"
        " SELECT *, (SELECT sum(occurrences)::BIGINT FROM offences) AS total FROM offences"
        f" ORDER BY ALL LIMIT {sample}"
    )


def count_rows(table: Table) -> str:
    """Current rows, and those that an extract opened and closed; binds `$number`."""
    return (
        f"SELECT (SELECT count(*) FROM {whole(table)} WHERE _is_current),"
        f" (SELECT count(*) FROM {whole(table)} WHERE _extract_number = $number),"
        f" (SELECT count(*) FROM {whole(table)} WHERE _deleted_at_extract = $number)"
    )


PUBLISHED_BEFORE = """
SELECT id, snapshot_date FROM import_jobs
WHERE status = 'completed' AND extract_number < $number AND snapshot_date > $date
ORDER BY extract_number DESC LIMIT 1
"""
"""The newest published extract before one whose data is of a later day than `$date`."""

SAME_WEEKDAY = """
SELECT extract_number FROM import_jobs
WHERE status = 'completed' AND extract_type = 'update' AND extract_number < $number
    AND isodow(snapshot_date) = isodow($date)
ORDER BY extract_number DESC LIMIT $extracts
"""
"""The newest published Updates before an extract whose snapshot is of the same weekday."""


def rows_of_extracts(table: Table, numbers: Sequence[int]) -> str:
    """How many rows each of these extracts opened and closed."""
    listed = ", ".join(str(int(number)) for number in numbers)  # written out, for the zone maps
    opened, closed = (
        f"SELECT {column} AS n, count(*) AS rows_with FROM {whole(table)}"
        f" WHERE {column} IN ({listed}) GROUP BY ALL"
        for column in ("_extract_number", "_deleted_at_extract")
    )
    return (
        "SELECT coalesce(o.rows_with, 0), coalesce(c.rows_with, 0)"
        f" FROM unnest([{listed}]) l(n) LEFT JOIN ({opened}) o ON o.n = l.n"
        f" LEFT JOIN ({closed}) c ON c.n = l.n"
    )


LEDGER_OF_EXTRACT = """
SELECT table_name, operation, count(*), bool_and(status = 'completed'),
    sum(records_count)::BIGINT, sum(rows_opened)::BIGINT, sum(rows_closed)::BIGINT,
    sum(rows_unchanged)::BIGINT, sum(duplicates_dropped)::BIGINT
FROM import_job_batches WHERE job_id = $id GROUP BY ALL
"""
"""What the ledger says of each table and operation of an extract."""


STAGED_MEMBERS = """
SELECT table_name, operation, records_count, rejected_count FROM staging.member
"""
"""How many records each CSV file of the staged extract had, and how many are set aside."""

REJECTED_ROWS = """
SELECT file, line, column_name, reason FROM rejected_row WHERE extract = $key ORDER BY file, line
"""
"""Where the records of an extract stood that are set aside, and why; binds `$key`."""


def staged_rows(key: ExtractKey) -> str:
    """How many rows an attached staging file holds, by table and operation."""
    return " UNION ALL ".join(
        f"SELECT '{table.name}', '{operation}', count(*) FROM staging.main.{table.name}"
        f" WHERE {of_operation(key.type, operation)}"
        for table in TABLES
        for operation in key.operations
    )
