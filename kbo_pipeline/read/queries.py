"""SQL that looks entities up by their number, and what readers may know of them.

Statements on `main` tables filter by the key, which the tables are sorted by; so DuckDB reads some
thousand rows of each. Whether somebody may see an entity, the table says that the views ask too.
The register is the default database.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

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
    return ", ".join(f"${name}{place}" for place in range(count))


def bind(name: str, values: Iterable[str]) -> dict[str, str]:
    """The bound values of a statement for so many values of a name."""
    return {f"{name}{place}": value for place, value in enumerate(values)}


def pieces(name: str, values: Sequence[str]) -> Iterator[dict[str, str]]:
    """The bound values of as many statements as values of a name need, some hundred in each."""
    for start in range(0, len(values), _MOST):
        yield bind(name, values[start : start + _MOST])


EXTRACTS = """
SELECT id, extract_number, extract_type, snapshot_date FROM import_jobs
WHERE status = 'completed' ORDER BY extract_number DESC, completed_at DESC
"""
"""The published extracts, the newest first."""


def versions(table: Table, column: str, count: int) -> str:
    """All row versions up to `$at` with one of so many values `$number0`, ... in a column.

    DuckDB finds the rows of one value in half the time that it needs for a list of two, because it
    reads the other columns of a part of the table only where the first one matches.
    """
    columns = f"{', '.join(table.column_names)}, _extract_number, _deleted_at_extract"
    rows = f"SELECT {columns} FROM main.{table.name} WHERE _extract_number <= $at AND"
    if count > _FEW:
        return f"{rows} {column} IN ({_any('number', count)})"
    return " UNION ALL ".join(f"{rows} {column} = $number{place}" for place in range(count))


def owner(table: Table) -> str:
    """The enterprise of a key `$number` at `$at`; for the tables of `UNITS`."""
    return (
        f"SELECT {ENTERPRISE.key} FROM main.{table.name} WHERE {table.key} = $number"
        " AND _extract_number <= $at AND (_deleted_at_extract IS NULL OR _deleted_at_extract > $at)"
    )


HIDES = (
    "SELECT 1 FROM duckdb_tables() WHERE database_name = current_database()"
    f" AND schema_name = 'main' AND table_name = '{SHOWN}'"
)
"""Tells whether the register leaves anybody out: no row where it does not."""


def shown(count: int) -> str:
    """Those of so many keys `$number0`, ... that are shown, where anybody is left out."""
    return f"SELECT number FROM main.{SHOWN} WHERE number IN ({_any('number', count)})"


def times(table: Table) -> str:
    """When a key `$number` was in the register: the extracts of its versions, the oldest first."""
    return (
        f"SELECT _extract_number, _deleted_at_extract FROM main.{table.name}"
        f" WHERE {table.key} = $number ORDER BY ALL"
    )


DESCRIPTIONS = f"SELECT {', '.join(CODE.column_names)} FROM {CODE.name}_at($at)"
"""What all codes mean at `$at`."""


def descriptions(count: int) -> str:
    """What so many codes `$code0`, ... mean at `$at`, in all categories that have them."""
    return f"{DESCRIPTIONS} WHERE code IN ({_any('code', count)})"


PLAIN = "SELECT strip_accents(lower($text))"
"""A text as names are compared."""

NEWEST_NACE = (
    f"SELECT max(category[5:]) FROM {CODE.name}_at($at)"
    " WHERE regexp_full_match(category, 'Nace[0-9]{4}')"
)
"""The newest version of NACE in the code list."""

_RANK = r"""CASE
    WHEN plain = $phrase THEN 0 WHEN starts_with(plain, $phrase) THEN 1
    WHEN contains(' ' || plain, ' ' || $phrase)
        OR contains(regexp_replace(plain, '[^\pL\pN]+', ' ', 'g'), ' ' || $phrase) THEN 2
    WHEN contains(plain, $phrase) THEN 3 ELSE 4 END"""

_CURRENT_UNITS = " UNION ALL ".join(
    f'SELECT {table.key} AS entity_number, {ENTERPRISE.key} FROM "current".{table.name}'
    for table in UNITS
)


def _enterprises(table: Table, where: str) -> str:
    """The enterprises that have such a row, they themselves or one of their units."""
    return (
        f"SELECT CASE WHEN {is_enterprise_number('r.' + table.key)} THEN r.{table.key}"
        f' ELSE u.{ENTERPRISE.key} END FROM "current".{table.name} r'
        f" LEFT JOIN units u ON u.entity_number = r.{table.key} WHERE {where}"
    )


def find(words: int, values: Collection[str]) -> str:
    """Finds current enterprises: their numbers, what has the name that matched, and that name.

    Args:
        words: so many words `$word0`, ... must be in the name, all of them `$phrase` when there
            are any.
        values: the names of the other values that are bound: `zipcode`, `nace` with
            `nace_version`, `status`; and always `limit`.
    """
    contained = " AND ".join(f"contains(plain, $word{place})" for place in range(words))
    status = " AND status = $status" if "status" in values else ""
    known = f"SELECT {ENTERPRISE.key} FROM main.{ENTERPRISE.name} WHERE _is_current{status}"
    conditions = [f"{ENTERPRISE.key} IN ({known})"]
    if "zipcode" in values:
        valid = "r.zipcode = $zipcode AND r.date_striking_off IS NULL"
        conditions.append(f"{ENTERPRISE.key} IN ({_enterprises(ADDRESS, valid)})")
    if "nace" in values:
        coded = "r.nace_version = $nace_version AND starts_with(r.nace_code, $nace)"
        conditions.append(f"{ENTERPRISE.key} IN ({_enterprises(ACTIVITY, coded)})")
    if words:
        key = DENOMINATION.key
        named = (
            f"SELECT {key} AS entity_number, denomination, trim(strip_accents(lower(denomination)))"
            f' AS plain FROM "current".{DENOMINATION.name} WHERE {contained}'
        )
        found = (
            f"SELECT CASE WHEN {is_enterprise_number('n.entity_number')} THEN n.entity_number"
            f" ELSE u.{ENTERPRISE.key} END AS {ENTERPRISE.key}, n.entity_number, n.denomination,"
            f" n.plain, {_RANK} AS rank FROM ({named}) n"
            " LEFT JOIN units u ON u.entity_number = n.entity_number"
        )
    else:
        seen, where = (
            (ADDRESS, "r.zipcode = $zipcode") if "zipcode" in values else (ACTIVITY, coded)
        )
        found = (
            f"SELECT DISTINCT {ENTERPRISE.key}, {ENTERPRISE.key} AS entity_number,"
            " NULL AS denomination, NULL AS plain, 0 AS rank"
            f" FROM ({_enterprises(seen, where)}) t({ENTERPRISE.key})"
        )
    return (
        f"WITH units AS ({_CURRENT_UNITS}), found AS ({found})"
        f" SELECT {ENTERPRISE.key}, entity_number, denomination FROM ("
        f"SELECT DISTINCT ON ({ENTERPRISE.key}) * FROM found WHERE {' AND '.join(conditions)}"
        f" ORDER BY {ENTERPRISE.key}, rank, length(plain), entity_number, plain, denomination)"
        f" ORDER BY rank, length(plain), plain, {ENTERPRISE.key} LIMIT $limit"
    )


HAS = {
    "zipcode": f'SELECT 1 FROM "current".{ADDRESS.name} WHERE zipcode = $zipcode LIMIT 1',
    "nace": f"SELECT 1 FROM \"current\".{CODE.name} WHERE category = concat('Nace', $nace_version)"
    f' AND starts_with(code, $nace) UNION ALL SELECT 1 FROM "current".{ACTIVITY.name}'
    " WHERE nace_version = $nace_version AND starts_with(nace_code, $nace) LIMIT 1",
    "status": f"SELECT 1 FROM \"current\".{CODE.name} WHERE category = 'Status' AND code = $status"
    f' UNION ALL SELECT 1 FROM "current".{ENTERPRISE.name} WHERE status = $status LIMIT 1',
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
    numbers = _any("number", count)
    names = f'(SELECT * FROM "current".{DENOMINATION.name} WHERE {DENOMINATION.key} IN ({numbers}))'
    seats = (
        f"SELECT s.{ADDRESS.key}, min({address_order('s')}) AS seat"
        f" FROM \"current\".{ADDRESS.name} s WHERE s.type_of_address = '{SEAT}'"
        f" AND s.{ADDRESS.key} IN ({numbers}) GROUP BY s.{ADDRESS.key}"
    )
    return (
        f"SELECT e.{ENTERPRISE.key}, coalesce(n.main_name, e.{ENTERPRISE.key}), e.status,"
        " a.seat.zipcode, coalesce(a.seat.municipality_nl, a.seat.municipality_fr),"
        f" a.seat.date_striking_off FROM main.{ENTERPRISE.name} e"
        f" LEFT JOIN ({main_names(names)}) n ON n.{DENOMINATION.key} = e.{ENTERPRISE.key}"
        f" LEFT JOIN ({seats}) a"
        f" ON a.{ADDRESS.key} = e.{ENTERPRISE.key}"
        f" WHERE e._is_current AND e.{ENTERPRISE.key} IN ({numbers})"
    )
