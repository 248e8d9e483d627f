"""SQL that compares a staged Full with the published register as it was at a number."""

from kbo_pipeline.apply.sql import differing_keys, incoming
from kbo_pipeline.core.tables import Table


def count_rows(table: Table) -> str:
    """Counts the rows of the Full, each once, and those of the register; binds `$number`."""
    return (
        f"SELECT (SELECT count(*) FROM ({incoming(table, 'full')})),"
        f" (SELECT count(*) FROM ({_held(table)}))"
    )


def find_drift(table: Table) -> tuple[str, ...]:
    """Makes `drift`: the rows that are not equally often in both; binds `$number`.

    Its last column, `surplus`, says how many times more a row is in the Full; it is negative for a
    row of the register. Only the rows of keys whose hashes differ are compared, so that this is
    quick where there is little drift.
    """
    new, old = incoming(table, "full"), _held(table)
    columns, of_keys = ", ".join(table.column_names), f"{table.key} IN (SELECT key FROM temp.keys)"
    return (
        f"CREATE OR REPLACE TEMP TABLE keys AS {differing_keys(table, new, old)}",
        f"CREATE OR REPLACE TEMP TABLE drift AS SELECT {columns}, sum(times) AS surplus FROM ("
        f"SELECT {columns}, 1 AS times FROM ({new}) WHERE {of_keys}"
        f" UNION ALL SELECT {columns}, -1 FROM ({old}) WHERE {of_keys}"
        ") GROUP BY ALL HAVING sum(times) <> 0",
    )


def _held(table: Table) -> str:
    return (
        f"SELECT {', '.join(table.column_names)} FROM main.{table.name}"
        " WHERE _extract_number <= $number"
        " AND (_deleted_at_extract IS NULL OR _deleted_at_extract > $number)"
    )


COUNT_DRIFT = """
SELECT coalesce(sum(surplus) FILTER (surplus > 0), 0),
    coalesce(-sum(surplus) FILTER (surplus < 0), 0)
FROM temp.drift
"""
"""Counts what only the Full has, and what only the register has."""


def sample_drift(table: Table, *, is_in_zip: bool) -> str:
    """The first rows, `$most` at most, that only the Full has, or only the register."""
    columns = ", ".join(table.column_names)
    return (
        f"SELECT {columns} FROM temp.drift WHERE surplus {'>' if is_in_zip else '<'} 0"
        f" ORDER BY ALL LIMIT $most"
    )
