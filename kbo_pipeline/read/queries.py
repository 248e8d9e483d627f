"""SQL that looks entities up by their number, and what readers may know of them.

Statements on `main` tables filter by the key, which the tables are sorted by; so DuckDB reads some
thousand rows of each. Whether somebody may see an entity, the table says that the views ask too.
The register is the default database.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from kbo_pipeline.core.sql import all_of, indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import (
    ACTIVITY,
    ADDRESS,
    CODE,
    DENOMINATION,
    ENTERPRISE,
    TABLES,
    Table,
)
from kbo_pipeline.read.changes_sql import is_enterprise_number, main_names
from kbo_pipeline.read.state_sql import SHOWN, address_order
from kbo_pipeline.read.views import SEAT

UNITS = tuple(table for table in TABLES if table.unique_key and table is not ENTERPRISE)
"""The tables of what belongs to an enterprise and has a number of its own."""

_FEW = 20  # values for which a query each is quicker than a list
_MOST = 500  # values that one statement asks for


def _any(name: str, count: int) -> str:
    """The placeholders `$name0`, `$name1`, ...: zone maps answer an IN of single values only."""
    return listed((f"${name}{place}" for place in range(count)), by=8)


def bind(name: str, values: Iterable[str]) -> dict[str, str]:
    """The bound values of a statement for so many values of a name."""
    return {f"{name}{place}": value for place, value in enumerate(values)}


def pieces(name: str, values: Sequence[str]) -> Iterator[dict[str, str]]:
    """The bound values of as many statements as values of a name need, some hundred in each."""
    for start in range(0, len(values), _MOST):
        yield bind(name, values[start : start + _MOST])


EXTRACTS = """
SELECT id, extract_number, extract_type, snapshot_date
FROM import_jobs
WHERE status = 'completed'
ORDER BY extract_number DESC, completed_at DESC
"""
"""The published extracts, the newest first."""


def versions(table: Table, column: str, count: int) -> str:
    """All row versions up to `$at` with one of so many values `$number0`, ... in a column.

    DuckDB finds the rows of one value in half the time that it needs for a list of two, because it
    reads the other columns of a part of the table only where the first one matches.
    """
    rows = f"""SELECT {listed((*table.column_names, "_extract_number", "_deleted_at_extract"))}
FROM main.{table.name}
WHERE _extract_number <= $at"""
    if count > _FEW:
        return f"{rows} AND {column} IN ({_any('number', count)})"
    return union_all(f"{rows} AND {column} = $number{place}" for place in range(count))


def owner(table: Table) -> str:
    """The enterprise of a key `$number` at `$at`; for the tables of `UNITS`."""
    return f"""SELECT {ENTERPRISE.key}
FROM main.{table.name}
WHERE {table.key} = $number
    AND _extract_number <= $at
    AND (_deleted_at_extract IS NULL OR _deleted_at_extract > $at)"""


HIDES = f"""
SELECT 1
FROM duckdb_tables()
WHERE database_name = current_database() AND schema_name = 'main' AND table_name = '{SHOWN}'
"""
"""Tells whether the register leaves anybody out: no row where it does not."""


def shown(count: int) -> str:
    """Those of so many keys `$number0`, ... that are shown, where anybody is left out."""
    return f"SELECT number\nFROM main.{SHOWN}\nWHERE number IN ({_any('number', count)})"


def times(table: Table) -> str:
    """When a key `$number` was in the register: the extracts of its versions, the oldest first."""
    return f"""SELECT _extract_number, _deleted_at_extract
FROM main.{table.name}
WHERE {table.key} = $number
ORDER BY ALL"""


DESCRIPTIONS = f"SELECT {listed(CODE.column_names)}\nFROM {CODE.name}_at($at)"
"""What all codes mean at `$at`."""


def descriptions(count: int) -> str:
    """What so many codes `$code0`, ... mean at `$at`, in all categories that have them."""
    return f"{DESCRIPTIONS}\nWHERE code IN ({_any('code', count)})"


PLAIN = "SELECT strip_accents(lower($text))"
"""A text as names are compared."""

NEWEST_NACE = f"""
SELECT max(category[5:])
FROM {CODE.name}_at($at)
WHERE regexp_full_match(category, 'Nace[0-9]{{4}}')
"""
"""The newest version of NACE in the code list."""

_CURRENT_UNITS = union_all(
    f'SELECT {table.key} AS entity_number, {ENTERPRISE.key} FROM "current".{table.name}'
    for table in UNITS
)


def _enterprises(table: Table, where: str) -> str:
    """The enterprises that have such a row, they themselves or one of their units."""
    return f"""SELECT CASE WHEN {is_enterprise_number("r." + table.key)} THEN r.{table.key}
    ELSE u.{ENTERPRISE.key} END AS {ENTERPRISE.key}
FROM "current".{table.name} r
LEFT JOIN units u ON u.entity_number = r.{table.key}
WHERE {where}"""


def _of_names(words: int) -> str:
    """The enterprises that have all words in a name of theirs or of one of their units."""
    contained = all_of(f"contains(plain, $word{place})" for place in range(words))
    number = "n.entity_number"
    return rf"""SELECT n.entity_number, n.denomination, n.plain,
    CASE WHEN {is_enterprise_number(number)} THEN {number}
        ELSE u.{ENTERPRISE.key} END AS {ENTERPRISE.key},
    CASE WHEN plain = $phrase THEN 0
        WHEN starts_with(plain, $phrase) THEN 1
        WHEN contains(' ' || plain, ' ' || $phrase)
            OR contains(regexp_replace(plain, '[^\pL\pN]+', ' ', 'g'), ' ' || $phrase) THEN 2
        WHEN contains(plain, $phrase) THEN 3
        ELSE 4 END AS rank
FROM (
    SELECT {DENOMINATION.key} AS entity_number, denomination,
        trim(strip_accents(lower(denomination))) AS plain
    FROM "current".{DENOMINATION.name}
    WHERE {contained}
) n
LEFT JOIN units u ON u.entity_number = n.entity_number"""


def find(words: int, values: Collection[str]) -> str:
    """Finds current enterprises: their numbers, what has the name that matched, and that name.

    Args:
        words: so many words `$word0`, ... must be in the name, all of them `$phrase` when there
            are any.
        values: the names of the other values that are bound: `zipcode`, `nace` with
            `nace_version`, `status`; and always `limit`.
    """
    key = ENTERPRISE.key
    status = " AND status = $status" if "status" in values else ""
    conditions = [f"SELECT {key} FROM main.{ENTERPRISE.name} WHERE _is_current{status}"]
    coded = "r.nace_version = $nace_version AND starts_with(r.nace_code, $nace)"
    if "zipcode" in values:
        valid = "r.zipcode = $zipcode AND r.date_striking_off IS NULL"
        conditions.append(_enterprises(ADDRESS, valid))
    if "nace" in values:
        conditions.append(_enterprises(ACTIVITY, coded))
    if words:
        candidates = _of_names(words)
    else:
        where = (ADDRESS, "r.zipcode = $zipcode") if "zipcode" in values else (ACTIVITY, coded)
        candidates = f"""SELECT DISTINCT {key}, {key} AS entity_number,
    NULL AS denomination, NULL AS plain, 0 AS rank
FROM (
    {indented(_enterprises(*where))}
)"""
    among = "\n    AND ".join(
        f"{key} IN (\n        {indented(query, 8)}\n    )" for query in conditions
    )
    best = f"""SELECT DISTINCT ON ({key}) *
FROM candidates
WHERE {among}
ORDER BY {key}, rank, length(plain), entity_number, plain, denomination"""
    return with_queries(
        {"units": _CURRENT_UNITS, "candidates": candidates, "best": best},
        f"""SELECT {key}, entity_number, denomination
FROM best
ORDER BY rank, length(plain), plain, {key}
LIMIT $limit""",
        materialized=None,
    )


HAS = {
    "zipcode": f'SELECT 1 FROM "current".{ADDRESS.name} WHERE zipcode = $zipcode LIMIT 1',
    "nace": f"""SELECT 1
FROM "current".{CODE.name}
WHERE category = concat('Nace', $nace_version) AND starts_with(code, $nace)
UNION ALL
SELECT 1
FROM "current".{ACTIVITY.name}
WHERE nace_version = $nace_version AND starts_with(nace_code, $nace)
LIMIT 1""",
    "status": f"""SELECT 1
FROM "current".{CODE.name}
WHERE category = 'Status' AND code = $status
UNION ALL
SELECT 1
FROM "current".{ENTERPRISE.name}
WHERE status = $status
LIMIT 1""",
}
"""Tells whether the register knows a value that a search may name."""

HAS_NOT = {
    "zipcode": "no address has this zipcode",
    "nace": "no NACE{version} code begins so",
    "status": "there is no such status",
}
"""What is said where it does not."""


def described(count: int) -> str:
    """Name, status and seat of so many current enterprises `$number0`, ... that may be seen."""
    key, numbers = ENTERPRISE.key, _any("number", count)
    names = main_names(f"""(
    SELECT *
    FROM "current".{DENOMINATION.name}
    WHERE {DENOMINATION.key} IN ({numbers})
)""")
    seats = f"""SELECT s.{ADDRESS.key}, min({address_order("s")}) AS seat
FROM "current".{ADDRESS.name} s
WHERE s.type_of_address = '{SEAT}' AND s.{ADDRESS.key} IN ({numbers})
GROUP BY s.{ADDRESS.key}"""
    query = f"""SELECT e.{key}, coalesce(n.main_name, e.{key}), e.status,
    a.seat.zipcode, coalesce(a.seat.municipality_nl, a.seat.municipality_fr),
    a.seat.date_striking_off
FROM main.{ENTERPRISE.name} e
LEFT JOIN names n ON n.{DENOMINATION.key} = e.{key}
LEFT JOIN seats a ON a.{ADDRESS.key} = e.{key}
WHERE e._is_current AND e.{key} IN ({numbers})"""
    return with_queries({"names": names, "seats": seats}, query)
