"""What an extract changed, entity by entity, each change by its kind.

The kinds are declared here as data; `docs/changes.md` explains them. All functions read a published
register that is the default database of a connection, through the macros `<table>_at` and
`<table>_changes`: they see what its readers may see.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import duckdb

from kbo_pipeline.core.sql import indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import (
    ACTIVITY,
    ADDRESS,
    BRANCH,
    CONTACT,
    DENOMINATION,
    ENTERPRISE,
    ESTABLISHMENT,
    NUMBERED,
    PARTS,
    TABLES,
    UNITS,
    Table,
)
from kbo_pipeline.read.state_sql import is_enterprise_number, main_names, quoted
from kbo_pipeline.read.types import Change

_FETCHED = 10_000  # rows

BANKRUPTCY_OPENED = ("048", "049", "050")
"""Juridical situations that mean the opening of a bankruptcy: excusable, not, undecided."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of change of an entity, in one table; `changed` applies where no other kind does.

    Attributes:
        table: where it is seen.
        name: what it is called.
        rule: when a change is of this kind, as a sentence for readers.
        columns: the row differs in one of them.
        becomes: the first of these columns becomes one of these values, and was none of them.
        beside: a row replaces another one that agrees with it in these columns.
    """

    table: Table
    name: str
    rule: str
    columns: tuple[str, ...] = ()
    becomes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


NEW, STOPPED, CHANGED, RENAMED = "new", "stopped", "changed", "renamed"

_PLACE = (
    "country_nl",
    "country_fr",
    "zipcode",
    "municipality_nl",
    "municipality_fr",
    "street_nl",
    "street_fr",
    "house_number",
    "box",
)

_OF_ROWS = tuple(
    Kind(table, name, rule)
    for table in TABLES
    if table.unique_key
    for name, rule in (
        (NEW, "Its number is in the register after the extract, but was not before."),
        (STOPPED, "Its number was in the register before the extract, but is not after it."),
    )
)

_OF_COLUMNS = (
    Kind(
        ENTERPRISE,
        "bankruptcy",
        "The juridical situation changes to the opening of a bankruptcy"
        f" ({', '.join(BANKRUPTCY_OPENED)}) from any other situation.",
        columns=("juridical_situation",),
        becomes=BANKRUPTCY_OPENED,
    ),
    Kind(
        ENTERPRISE,
        "situation",
        "The juridical situation changes, but not to a bankruptcy as above.",
        columns=("juridical_situation",),
    ),
    Kind(
        ENTERPRISE,
        "form",
        "The juridical form changes, or that of the companies' code of 2019.",
        columns=("juridical_form", "juridical_form_cac"),
    ),
    *(
        Kind(table, "transferred", "It now belongs to another enterprise.", ("enterprise_number",))
        for table in (ESTABLISHMENT, BRANCH)
    ),
)

_OF_NAMES = Kind(
    DENOMINATION,
    RENAMED,
    "The primary name of an enterprise changes, or the main name of an establishment unit or"
    " branch. If there is no name, the number stands for it.",
)

_OF_PLACES = Kind(
    ADDRESS,
    "moved",
    "Addresses of one type were replaced by others in different places: country, zipcode,"
    " municipality, street, house number or box differ, in either language.",
    columns=_PLACE,
    beside=("type_of_address",),
)

_OF_THE_REST = tuple(
    Kind(table, CHANGED, rule)
    for table, rule in (
        (ENTERPRISE, "Another column of its row changes: status, type, start date."),
        (ESTABLISHMENT, "Its start date changes."),
        (DENOMINATION, "Names came or went, but the main name is the same."),
        (ADDRESS, "An address came, went or changed, but the entity did not move."),
        (CONTACT, "Contacts came or went."),
        (ACTIVITY, "Activities came or went."),
        (BRANCH, "Its start date changes."),
    )
)

KINDS: tuple[Kind, ...] = tuple(
    sorted(
        (*_OF_ROWS, *_OF_COLUMNS, _OF_NAMES, _OF_PLACES, *_OF_THE_REST),
        key=lambda kind: TABLES.index(kind.table),
    )
)
"""All kinds, by table; of those with the same columns, the first one that applies counts."""


def count_changes(connection: duckdb.DuckDBPyConnection, number: int) -> dict[tuple[str, str], int]:
    """The entities that an extract changed, by table and kind; all kinds, in their order."""
    rows = connection.execute(COUNT_CHANGES, {"number": number}).fetchall()
    counts = {(table, kind): count for table, kind, count in rows}
    return {(k.table.name, k.name): counts.get((k.table.name, k.name), 0) for k in KINDS}


def changed_entities(connection: duckdb.DuckDBPyConnection, number: int) -> duckdb.DuckDBPyRelation:
    """What an extract changed, as a relation with one row for each kind of change of each entity.

    Columns: `table_name`, `kind`, `entity_number`, `enterprise_number`, `name`, `before`, `after`,
    as in `Change`; in the order of tables, then kinds, then numbers. The relation is computed now,
    and lives as long as the connection.
    """
    return connection.sql(CHANGED_ENTITIES, params={"number": number})


def iterate_changes(connection: duckdb.DuckDBPyConnection, number: int) -> Iterator[Change]:
    """The rows of `changed_entities`, as one `Change` after the other.

    The connection can be used for nothing else before the last one is read.
    """
    result = connection.execute(CHANGED_ENTITIES, {"number": number})
    pieces = iter(lambda: result.fetchmany(_FETCHED), [])
    return (Change(*row) for rows in pieces for row in rows)


_BEFORE, _AFTER = "$number - 1", "$number"  # states: nothing changes between two extracts


def _joined(alias: str, columns: tuple[str, ...]) -> str:
    names = listed((f"{alias}.{name}" for name in columns), by=8)
    return f"nullif(concat_ws(' ', {names}), '')"


def _differ(columns: tuple[str, ...]) -> str:
    return listed((f"removed.{name} IS DISTINCT FROM added.{name}" for name in columns), " OR ", 8)


def _rows(table: Table, change: str) -> str:
    return f"(SELECT * FROM {table.name}_changes({_AFTER}) WHERE _change = '{change}')"


def _pairs(table: Table) -> str:
    """The row before and the row after of each key that has one row at most; one may be NULL."""
    key = table.key
    return f"""SELECT coalesce(removed.{key}, added.{key}) AS entity_number, removed, added
FROM {_rows(table, "removed")} removed
FULL JOIN {_rows(table, "added")} added
    ON removed.{key} = added.{key}"""


def _of_pairs(table: Table) -> list[str]:
    """The changes in a table whose key has one row at most, a query for each kind or more."""
    others = table.column_names[1:]
    kinds = [kind for kind in KINDS if kind.table is table and kind.columns]
    both = "removed._change IS NOT NULL AND added._change IS NOT NULL"
    before, after = _joined("removed", others), _joined("added", others)
    queries = [
        _select(table, f"'{NEW}'", "NULL", after, "removed._change IS NULL"),
        _select(table, f"'{STOPPED}'", before, "NULL", "added._change IS NULL"),
    ]
    for columns, same in groupby(kinds, key=lambda kind: kind.columns):
        texts = (_joined("removed", columns), _joined("added", columns))
        where = f"{both}\n    AND ({_differ(columns)})"
        queries.append(_select(table, _first_of(list(same)), *texts, where))
    special = tuple(name for kind in kinds for name in kind.columns)
    where = f"{both}\n    AND NOT ({_differ(special)})"
    return [*queries, _select(table, f"'{CHANGED}'", before, after, where)]


def _first_of(kinds: list[Kind]) -> str:
    """The name of the first kind that applies; the last one applies to the rest."""
    cases = [
        f"""WHEN added.{kind.columns[0]} IN ({quoted(kind.becomes)})
            AND coalesce(removed.{kind.columns[0]}, '') NOT IN ({quoted(kind.becomes)})
            THEN '{kind.name}'"""
        for kind in kinds
        if kind.becomes
    ]
    last = f"'{kinds[-1].name}'"
    return f"CASE {' '.join(cases)} ELSE {last} END" if cases else last


def _select(table: Table, kind: str, before: str, after: str, where: str) -> str:
    return f"""SELECT '{table.name}' AS table_name, entity_number,
    {kind} AS kind,
    {before} AS before,
    {after} AS after
FROM {table.name}_pairs
WHERE {where}"""


def _kept(table: Table) -> str:
    """The changed rows of entities that are neither new nor stopped."""
    return f"""SELECT c.{table.key} AS entity_number, c.*
FROM {table.name}_changes({_AFTER}) c
ANTI JOIN come_or_gone g ON g.entity_number = c.{table.key}"""


def _of_kept(table: Table) -> dict[str, str]:
    """The changes in a table in which an entity has any number of rows: the last query."""
    kinds = [kind for kind in KINDS if kind.table is table and kind.name != CHANGED]
    queries = {
        f"{table.name}_{kind.name}": _renamed() if kind.name == RENAMED else _replaced(kind)
        for kind in kinds
    }
    special = "".join(
        f"\nANTI JOIN {name} ON {name}.entity_number = r.entity_number" for name in queries
    )
    rest = f"""SELECT r.entity_number, '{CHANGED}' AS kind,
    {_texts_of("removed")} AS before,
    {_texts_of("added")} AS after
FROM (
    {indented(_with_text(table, table.column_names[1:]))}
) r{special}
GROUP BY r.entity_number"""
    every = union_all([*(f"SELECT * FROM {name}" for name in queries), rest])
    return {**queries, f"{table.name}_kinds": every}


def _with_text(table: Table, columns: tuple[str, ...]) -> str:
    return f"SELECT *,\n    {_joined('r', columns)} AS row_text\nFROM {table.name}_rows r"


def _texts_of(change: str) -> str:
    return f"""string_agg(DISTINCT row_text, '; ' ORDER BY row_text)
        FILTER (_change = '{change}')"""


def _renamed() -> str:
    return f"""SELECT r.entity_number, '{RENAMED}' AS kind,
    b.main_name AS before, a.main_name AS after
FROM (SELECT DISTINCT entity_number FROM {DENOMINATION.name}_rows) r
LEFT JOIN names_before b ON b.entity_number = r.entity_number
LEFT JOIN names_after a ON a.entity_number = r.entity_number
WHERE b.main_name IS DISTINCT FROM a.main_name"""


def _replaced(kind: Kind) -> str:
    """Rows replaced by others that agree in `beside`, and differ as a whole in `columns`."""
    texts = f"""SELECT entity_number,
    {_texts_of("removed")} AS before,
    {_texts_of("added")} AS after
FROM (
    {indented(_with_text(kind.table, kind.columns))}
)
GROUP BY entity_number, {listed(kind.beside)}"""
    return f"""SELECT entity_number, '{kind.name}' AS kind,
    string_agg(before, '; ' ORDER BY before) AS before,
    string_agg(after, '; ' ORDER BY after) AS after
FROM (
    {indented(texts)}
)
WHERE before <> after
GROUP BY entity_number"""


def _owners() -> str:
    """The enterprise of each establishment unit and branch, as of the newer of both states."""
    of_states = union_all(
        f"""SELECT {table.key} AS entity_number, {ENTERPRISE.key}, {place} AS place
FROM {table.name}_at({state})
WHERE {table.key} IN (SELECT entity_number FROM entities)"""
        for table in UNITS
        for place, state in enumerate((_BEFORE, _AFTER))
    )
    return f"""SELECT entity_number, arg_max({ENTERPRISE.key}, place) AS {ENTERPRISE.key}
FROM (
    {indented(of_states)}
)
GROUP BY entity_number"""


def _names(state: str) -> str:
    key = DENOMINATION.key
    return main_names(f"""(
    SELECT d.*
    FROM {DENOMINATION.name}_at({state}) d
    WHERE d.{key} IN (SELECT entity_number FROM touched)
)""")


def _queries() -> dict[str, str]:
    """The queries that both statements read; `classified` has a row for each change."""
    came_or_went = (
        f"""SELECT entity_number
FROM {table.name}_pairs
WHERE removed._change IS NULL OR added._change IS NULL"""
        for table in NUMBERED
    )
    touched = (
        *(f"SELECT entity_number FROM {table.name}_pairs" for table in NUMBERED),
        *(f"SELECT entity_number FROM {table.name}_rows" for table in PARTS),
    )
    changes = [
        *(query for table in NUMBERED for query in _of_pairs(table)),
        *(f"SELECT '{table.name}' AS table_name, * FROM {table.name}_kinds" for table in PARTS),
    ]
    return {
        **{f"{table.name}_pairs": _pairs(table) for table in NUMBERED},
        "come_or_gone": union_all(came_or_went),
        **{f"{table.name}_rows": _kept(table) for table in PARTS},
        "touched": "\nUNION\n".join(touched),
        "names_before": _names(_BEFORE),
        "names_after": _names(_AFTER),
        **{name: query for table in PARTS for name, query in _of_kept(table).items()},
        "classified": union_all(changes),
        "entities": "SELECT DISTINCT entity_number FROM classified",
        "owners": _owners(),
    }


COUNT_CHANGES = with_queries(
    _queries(),
    "SELECT table_name, kind, count(*)\nFROM classified\nGROUP BY table_name, kind",
    materialized=True,
)
"""Counts the changed entities by table and kind."""

CHANGED_ENTITIES = with_queries(
    _queries(),
    f"""SELECT c.table_name, c.kind, c.entity_number,
    CASE WHEN {is_enterprise_number("c.entity_number")} THEN c.entity_number
        ELSE o.{ENTERPRISE.key} END AS {ENTERPRISE.key},
    coalesce(a.main_name, b.main_name, c.entity_number) AS name, c.before, c.after
FROM classified c
LEFT JOIN names_after a ON a.entity_number = c.entity_number
LEFT JOIN names_before b ON b.entity_number = c.entity_number
LEFT JOIN owners o ON o.entity_number = c.entity_number
ORDER BY list_position(
        [{quoted(tuple(f"{k.table.name} {k.name}" for k in KINDS))}],
        c.table_name || ' ' || c.kind),
    c.entity_number""",
    materialized=True,
)
"""One row for each kind of change of each entity; `before` and `after` are texts."""
