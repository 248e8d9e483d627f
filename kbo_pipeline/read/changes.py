"""What an extract changed, entity by entity, each change by its kind.

The kinds are declared here as data; `docs/changes.md` explains them. All functions read a published
register that is the default database of a connection, through the macros `<table>_at` and
`<table>_changes`: they see what its readers may see.
"""

from collections.abc import Callable, Iterator
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
    """One kind of change of an entity, in one table; `changed` is about what no other kind is.

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
READDRESSED = "readdressed"
CORRECTED = "corrected"

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

_BUILDINGS = 5
"""House numbers of one street, or municipality, that must change alike to be readdressed.

Many companies at one house number that move together are one; two streets between which so many
move on one day, each to the house number that it had, are one street with another name.
"""

_OF_PLACES = (
    Kind(
        ADDRESS,
        "moved",
        "Addresses of one type were replaced by others in different places: country, zipcode,"
        " municipality, street, house number or box differ, in either language; and it is not"
        " `readdressed`.",
        columns=_PLACE,
        beside=("type_of_address",),
    ),
    Kind(
        ADDRESS,
        READDRESSED,
        "It stays where it is, and its street or municipality is called otherwise: house number and"
        f" box are the same, and at least {_BUILDINGS} house numbers of the old street or"
        " municipality changed to the same new one in this extract.",
    ),
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

_OF_KBO = (*_OF_ROWS, *_OF_COLUMNS, _OF_NAMES, *_OF_PLACES, *_OF_THE_REST)
"""The kinds of changes that KBO makes; of those with the same columns, the first one counts."""

_OF_REPAIRS = tuple(
    Kind(
        table,
        CORRECTED,
        "Its rows in this table were not those of KBO's Full, and `kbo repair` closed the"
        " difference; in place of any other kind.",
    )
    for table in TABLES
)

KINDS: tuple[Kind, ...] = tuple(
    sorted((*_OF_KBO, *_OF_REPAIRS), key=lambda kind: TABLES.index(kind.table))
)
"""All kinds, by table."""


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


Render = Callable[[str, tuple[str, ...]], str]
"""Makes the expression for some columns of a row, which an alias names."""


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


def columns_of(table: Table) -> dict[str, tuple[str, ...]]:
    """The columns that each kind is about, in a table whose key has one row at most; by kind."""
    others = table.column_names[1:]
    of_kinds = {k.name: k.columns for k in _OF_KBO if k.table is table and k.columns}
    special = {name for columns in of_kinds.values() for name in columns}
    rest = tuple(name for name in others if name not in special)
    return {**dict.fromkeys((NEW, STOPPED, CORRECTED), others), **of_kinds, CHANGED: rest}


def _of_pairs(table: Table, render: Render) -> list[str]:
    """The changes in a table whose key has one row at most, a query for each kind or more."""
    columns_by_kind = columns_of(table)
    others, rest = columns_by_kind[NEW], columns_by_kind[CHANGED]
    kinds = [kind for kind in _OF_KBO if kind.table is table and kind.columns]
    both = "removed._change IS NOT NULL AND added._change IS NOT NULL"
    before, after = render("removed", others), render("added", others)
    queries = [
        _select(table, f"'{NEW}'", "NULL", after, "removed._change IS NULL"),
        _select(table, f"'{STOPPED}'", before, "NULL", "added._change IS NULL"),
    ]
    for columns, same in groupby(kinds, key=lambda kind: kind.columns):
        texts = (render("removed", columns), render("added", columns))
        where = f"{both}\n    AND ({_differ(columns)})"
        queries.append(_select(table, _first_of(list(same)), *texts, where))
    where = f"{both}\n    AND ({_differ(rest)})"
    texts = (render("removed", rest), render("added", rest))
    corrected = f"""SELECT '{table.name}' AS table_name, p.entity_number,
    '{CORRECTED}' AS kind,
    {before} AS before,
    {after} AS after
FROM {table.name}_pairs p
{_join_corrected("SEMI", table, "p.entity_number")}"""
    return [*queries, _select(table, f"'{CHANGED}'", *texts, where), corrected]


def _join_corrected(kind: str, table: Table, entity: str) -> str:
    """A SEMI or ANTI join with the keys of a table that a repair has corrected."""
    return f"""{kind} JOIN corrected k
    ON k.table_name = '{table.name}' AND k.entity_number = {entity}"""


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
FROM {table.name}_pairs p
{_join_corrected("ANTI", table, "p.entity_number")}
WHERE {where}"""


def _kept(table: Table) -> str:
    """The changed rows of entities that are neither new nor stopped, and not corrected."""
    return f"""SELECT c.{table.key} AS entity_number, c.*
FROM {table.name}_changes({_AFTER}) c
ANTI JOIN come_or_gone g ON g.entity_number = c.{table.key}
{_join_corrected("ANTI", table, f"c.{table.key}")}"""


def _corrected_rows(table: Table) -> str:
    """The changed rows of corrected entities, also of new and stopped ones."""
    return f"""SELECT c.{table.key} AS entity_number, c.*
FROM {table.name}_changes({_AFTER}) c
{_join_corrected("SEMI", table, f"c.{table.key}")}"""


def _of_kept(table: Table) -> dict[str, str]:
    """The changes in a table in which an entity has any number of rows: the last query."""
    kinds = [kind for kind in _OF_KBO if kind.table is table and kind.name != CHANGED]
    queries = {
        f"{table.name}_{kind.name}": _renamed() if kind.name == RENAMED else _replaced(kind)
        for kind in kinds
        if kind.name != READDRESSED
    }
    first = _alike() if table is ADDRESS else {}
    if table is ADDRESS:
        queries[f"{table.name}_{READDRESSED}"] = _readdressed()
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
    corrected = f"""SELECT r.entity_number, '{CORRECTED}' AS kind,
    {_texts_of("removed")} AS before,
    {_texts_of("added")} AS after
FROM (
    {indented(_with_text(table, table.column_names[1:], "corrected"))}
) r
GROUP BY r.entity_number"""
    every = union_all([*(f"SELECT * FROM {name}" for name in queries), rest, corrected])
    return {**first, **queries, f"{table.name}_kinds": every}


def _with_text(table: Table, columns: tuple[str, ...], source: str = "rows") -> str:
    return f"SELECT *,\n    {_joined('r', columns)} AS row_text\nFROM {table.name}_{source} r"


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
) r
ANTI JOIN alike a
    ON a.entity_number = r.entity_number
    AND a.type_of_address IS NOT DISTINCT FROM r.type_of_address
GROUP BY entity_number, {listed(kind.beside)}"""
    return f"""SELECT entity_number, '{kind.name}' AS kind,
    string_agg(before, '; ' ORDER BY before) AS before,
    string_agg(after, '; ' ORDER BY after) AS after
FROM (
    {indented(texts)}
)
WHERE before <> after
GROUP BY entity_number"""


_MUNICIPALITY = ("zipcode", "municipality_nl", "municipality_fr")
_STREET = (*_MUNICIPALITY, "street_nl", "street_fr")


def _key(alias: str, columns: tuple[str, ...]) -> str:
    values = listed((f"coalesce({alias}.{name}, '')" for name in columns), by=8)
    return f"concat_ws(chr(31), {values})"


def _alike() -> dict[str, str]:
    """The addresses of which many of one street or municipality have changed alike."""
    pairs = f"""SELECT removed.entity_number, removed.type_of_address, removed.house_number,
    {_key("removed", _STREET)} AS old_street,
    {_key("added", _STREET)} AS new_street,
    {_key("removed", _MUNICIPALITY)} AS old_municipality,
    {_key("added", _MUNICIPALITY)} AS new_municipality
FROM (SELECT * FROM address_rows WHERE _change = 'removed') removed
JOIN (SELECT * FROM address_rows WHERE _change = 'added') added
    ON added.entity_number = removed.entity_number
    AND added.type_of_address IS NOT DISTINCT FROM removed.type_of_address
    AND added.house_number IS NOT DISTINCT FROM removed.house_number
    AND added.box IS NOT DISTINCT FROM removed.box"""
    return {
        "same_house": pairs,
        "same_streets": f"""SELECT old_street, new_street
FROM same_house
WHERE old_street <> new_street
GROUP BY ALL
HAVING count(DISTINCT house_number) >= {_BUILDINGS}""",
        "same_municipalities": f"""SELECT old_municipality, new_municipality
FROM same_house
WHERE old_municipality <> new_municipality
GROUP BY ALL
HAVING count(DISTINCT old_street || chr(31) || house_number) >= {_BUILDINGS}""",
        "alike": """SELECT DISTINCT h.entity_number, h.type_of_address
FROM same_house h
LEFT JOIN same_streets s ON s.old_street = h.old_street AND s.new_street = h.new_street
LEFT JOIN same_municipalities m
    ON m.old_municipality = h.old_municipality AND m.new_municipality = h.new_municipality
WHERE s.old_street IS NOT NULL OR m.old_municipality IS NOT NULL""",
    }


def _readdressed() -> str:
    texts = _with_text(ADDRESS, _PLACE)
    return f"""SELECT r.entity_number, '{READDRESSED}' AS kind,
    {_texts_of("removed")} AS before,
    {_texts_of("added")} AS after
FROM (
    {indented(texts)}
) r
SEMI JOIN alike a
    ON a.entity_number = r.entity_number
    AND a.type_of_address IS NOT DISTINCT FROM r.type_of_address
ANTI JOIN address_moved m ON m.entity_number = r.entity_number
GROUP BY r.entity_number"""


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


def _come_or_gone(table: Table) -> str:
    return f"""SELECT entity_number,
    CASE WHEN added._change IS NULL THEN '{STOPPED}' ELSE '{NEW}' END AS kind
FROM {table.name}_pairs
WHERE removed._change IS NULL OR added._change IS NULL"""


def queries(render: Render = _joined) -> dict[str, str]:
    """The queries that all statements read; bind `$number`.

    `numbered` and `parts` have a row for each kind of change of each entity, in the tables whose
    key has one row at most and in the others, where those of `come_or_gone` entities are left out.

    Args:
        render: makes `before` and `after` in `numbered`.
    """
    touched = (
        *(f"SELECT entity_number FROM {table.name}_pairs" for table in NUMBERED),
        *(f"SELECT entity_number FROM {table.name}_rows" for table in PARTS),
        *(f"SELECT entity_number FROM {table.name}_corrected" for table in PARTS),
    )
    return {
        "corrected": f"""SELECT table_name, key AS entity_number
FROM correction
WHERE extract_number = {_AFTER}""",
        **{f"{table.name}_pairs": _pairs(table) for table in NUMBERED},
        "come_or_gone": union_all(map(_come_or_gone, NUMBERED)),
        **{f"{table.name}_rows": _kept(table) for table in PARTS},
        **{f"{table.name}_corrected": _corrected_rows(table) for table in PARTS},
        "touched": "\nUNION\n".join(touched),
        "names_before": _names(_BEFORE),
        "names_after": _names(_AFTER),
        **{name: query for table in PARTS for name, query in _of_kept(table).items()},
        "numbered": union_all(query for table in NUMBERED for query in _of_pairs(table, render)),
        "parts": union_all(
            f"SELECT '{table.name}' AS table_name, * FROM {table.name}_kinds" for table in PARTS
        ),
        "entities": "SELECT entity_number FROM numbered\nUNION\nSELECT entity_number FROM parts",
        "owners": _owners(),
    }


def described(source: str, columns: str) -> str:
    """Rows of entities, each with its enterprise and its name; binds nothing of its own.

    Args:
        source: one of `queries`, or a query that reads them, with `entity_number`.
        columns: what else of it is selected, as `c`.
    """
    return f"""SELECT {columns}, c.entity_number,
    CASE WHEN {is_enterprise_number("c.entity_number")} THEN c.entity_number
        ELSE o.{ENTERPRISE.key} END AS {ENTERPRISE.key},
    coalesce(a.main_name, b.main_name, c.entity_number) AS name, c.before, c.after
FROM {source} c
LEFT JOIN names_after a ON a.entity_number = c.entity_number
LEFT JOIN names_before b ON b.entity_number = c.entity_number
LEFT JOIN owners o ON o.entity_number = c.entity_number"""


_CLASSIFIED = queries() | {"classified": "SELECT * FROM numbered\nUNION ALL\nSELECT * FROM parts"}

COUNT_CHANGES = with_queries(
    _CLASSIFIED,
    "SELECT table_name, kind, count(*)\nFROM classified\nGROUP BY table_name, kind",
    materialized=True,
)
"""Counts the changed entities by table and kind."""

CHANGED_ENTITIES = with_queries(
    _CLASSIFIED,
    f"""{described("classified", "c.table_name, c.kind")}
ORDER BY list_position(
        [{quoted(tuple(f"{k.table.name} {k.name}" for k in KINDS))}],
        c.table_name || ' ' || c.kind),
    c.entity_number""",
    materialized=True,
)
"""One row for each kind of change of each entity; `before` and `after` are texts."""
