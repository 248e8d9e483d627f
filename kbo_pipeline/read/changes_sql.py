"""SQL that says what an extract did to each entity; binds `$number`, of a published extract.

It reads the macros `<table>_at` and `<table>_changes`, so it sees what readers may see. The
register is the default database.
"""

from itertools import groupby

from kbo_pipeline.core.sql import indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import DENOMINATION, ENTERPRISE, ENTERPRISE_NUMBER, TABLES, Table
from kbo_pipeline.read.kinds import CHANGED, KINDS, NEW, RENAMED, STOPPED, Kind
from kbo_pipeline.read.state_sql import PRIMARY_NAME_LANGUAGES

_BEFORE, _AFTER = "$number - 1", "$number"  # states: nothing changes between two extracts

NAME_TYPES = ("001", "003", "004", "002")
"""Types of names in the order in which a main name is chosen; of enterprises only the first."""

_UNIQUE = tuple(table for table in TABLES if table.unique_key)
_OTHERS = tuple(table for table in TABLES if not table.unique_key)


def _texts(values: tuple[str, ...]) -> str:
    return listed((f"'{value}'" for value in values), by=8)


def is_enterprise_number(expression: str) -> str:
    """Tells a number of an enterprise from one of an establishment unit or branch."""
    return f"{expression}[1] IN ({_texts(ENTERPRISE_NUMBER)})"


def main_names(source: str) -> str:
    """The main name of each entity of a relation of names; those without one are left out.

    Of an enterprise its primary name; of others the same choice of languages, and where there is
    no name of type 001, of type 003, 004 or 002.
    """
    key = DENOMINATION.key
    types = _places(NAME_TYPES)
    languages = _places(tuple(code for code, _ in PRIMARY_NAME_LANGUAGES))
    return f"""SELECT {key}, substr(min(
        CASE type_of_denomination
            {types} END
        || CASE language
            {languages} END
        || denomination), 3) AS main_name
FROM {source}
WHERE type_of_denomination = '{NAME_TYPES[0]}' OR NOT {is_enterprise_number(key)}
GROUP BY {key}
HAVING main_name IS NOT NULL"""


def _places(values: tuple[str, ...]) -> str:
    return listed((f"WHEN '{value}' THEN '{i}'" for i, value in enumerate(values)), " ", 12)


def _joined(alias: str, columns: tuple[str, ...]) -> str:
    names = listed((f"{alias}.{name}" for name in columns), by=8)
    return f"nullif(concat_ws(' ', {names}), '')"


def _differ(columns: tuple[str, ...]) -> str:
    return listed((f"removed.{name} IS DISTINCT FROM added.{name}" for name in columns), " OR ", 8)


def _rows(table: Table, change: str) -> str:
    return f"(SELECT * FROM {table.name}_changes({_AFTER}) WHERE _change = '{change}')"


def _pairs(table: Table) -> str:
    """Where a key has one row at most: the row before and the row after, or one of them."""
    key = table.key
    return f"""SELECT coalesce(removed.{key}, added.{key}) AS entity_number, removed, added
FROM {_rows(table, "removed")} removed
FULL JOIN {_rows(table, "added")} added
    ON removed.{key} = added.{key}"""


def _of_pairs(table: Table) -> list[str]:
    """What became of the rows of a table whose key has one row at most."""
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
    """The name of the first kind that applies; the last one asks for nothing more."""
    cases = [
        f"""WHEN added.{kind.columns[0]} IN ({_texts(kind.becomes)})
            AND coalesce(removed.{kind.columns[0]}, '') NOT IN ({_texts(kind.becomes)})
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
    """The changed rows of entities that are neither new nor stopped: of those it is known."""
    return f"""SELECT c.{table.key} AS entity_number, c.*
FROM {table.name}_changes({_AFTER}) c
ANTI JOIN come_or_gone g ON g.entity_number = c.{table.key}"""


def _of_kept(table: Table) -> dict[str, str]:
    """What became of the rows of a table in which an entity has any number: the last query."""
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
    """Rows went and others came that agree in `beside`, and differ as a whole in `columns`."""
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
        for table in _UNIQUE
        if table is not ENTERPRISE
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
    """What both statements read; of this, `classified` has a row for each change."""
    came_or_went = (
        f"""SELECT entity_number
FROM {table.name}_pairs
WHERE removed._change IS NULL OR added._change IS NULL"""
        for table in _UNIQUE
    )
    touched = (
        *(f"SELECT entity_number FROM {table.name}_pairs" for table in _UNIQUE),
        *(f"SELECT entity_number FROM {table.name}_rows" for table in _OTHERS),
    )
    changes = [
        *(query for table in _UNIQUE for query in _of_pairs(table)),
        *(f"SELECT '{table.name}' AS table_name, * FROM {table.name}_kinds" for table in _OTHERS),
    ]
    return {
        **{f"{table.name}_pairs": _pairs(table) for table in _UNIQUE},
        "come_or_gone": union_all(came_or_went),
        **{f"{table.name}_rows": _kept(table) for table in _OTHERS},
        "touched": "\nUNION\n".join(touched),
        "names_before": _names(_BEFORE),
        "names_after": _names(_AFTER),
        **{name: query for table in _OTHERS for name, query in _of_kept(table).items()},
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
        [{_texts(tuple(f"{k.table.name} {k.name}" for k in KINDS))}],
        c.table_name || ' ' || c.kind),
    c.entity_number""",
    materialized=True,
)
"""One row for each kind of change of each entity; `before` and `after` are texts."""
