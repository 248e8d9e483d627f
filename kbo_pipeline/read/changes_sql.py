"""SQL that says what an extract did to each entity; binds `$number`, of a published extract.

It reads the macros `<table>_at` and `<table>_changes`, so it sees what readers may see. The
register is the default database.
"""

from itertools import groupby

from kbo_pipeline.core.tables import DENOMINATION, ENTERPRISE, ENTERPRISE_NUMBER, TABLES, Table
from kbo_pipeline.read.kinds import CHANGED, KINDS, NEW, RENAMED, STOPPED, Kind
from kbo_pipeline.read.state_sql import PRIMARY_NAME_LANGUAGES

_BEFORE, _AFTER = "$number - 1", "$number"  # states: nothing changes between two extracts

NAME_TYPES = ("001", "003", "004", "002")
"""Types of names in the order in which a main name is chosen; of enterprises only the first."""

_UNIQUE = tuple(table for table in TABLES if table.unique_key)
_OTHERS = tuple(table for table in TABLES if not table.unique_key)


def _texts(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)


def is_enterprise_number(expression: str) -> str:
    """Tells a number of an enterprise from one of an establishment unit or branch."""
    return f"{expression}[1] IN ({_texts(ENTERPRISE_NUMBER)})"


def main_names(source: str) -> str:
    """The main name of each entity of a relation of names; those without one are left out.

    Of an enterprise its primary name; of others the same choice of languages, and where there is
    no name of type 001, of type 003, 004 or 002.
    """
    types = " ".join(f"WHEN '{t}' THEN '{i}'" for i, t in enumerate(NAME_TYPES))
    languages = " ".join(
        f"WHEN '{code}' THEN '{i}'" for i, (code, _) in enumerate(PRIMARY_NAME_LANGUAGES)
    )
    key = DENOMINATION.key
    return (
        f"SELECT {key}, substr(min(CASE type_of_denomination {types} END"
        f" || CASE language {languages} END || denomination), 3) AS main_name FROM {source}"
        f" WHERE type_of_denomination = '{NAME_TYPES[0]}' OR NOT {is_enterprise_number(key)}"
        f" GROUP BY {key} HAVING main_name IS NOT NULL"
    )


def _joined(alias: str, columns: tuple[str, ...]) -> str:
    return f"nullif(concat_ws(' ', {', '.join(f'{alias}.{name}' for name in columns)}), '')"


def _differ(columns: tuple[str, ...]) -> str:
    return " OR ".join(f"removed.{name} IS DISTINCT FROM added.{name}" for name in columns)


def _rows(table: Table, change: str) -> str:
    return f"(SELECT * FROM {table.name}_changes({_AFTER}) WHERE _change = '{change}')"


def _pairs(table: Table) -> str:
    """Where a key has one row at most: the row before and the row after, or one of them."""
    key = table.key
    return (
        f"SELECT coalesce(removed.{key}, added.{key}) AS entity_number, removed, added"
        f" FROM {_rows(table, 'removed')} removed"
        f" FULL JOIN {_rows(table, 'added')} added ON removed.{key} = added.{key}"
    )


def _of_pairs(table: Table) -> list[str]:
    """What became of the rows of a table whose key has one row at most."""
    pairs, others = f"{table.name}_pairs", table.column_names[1:]
    kinds = [kind for kind in KINDS if kind.table is table and kind.columns]
    both = "removed._change IS NOT NULL AND added._change IS NOT NULL"
    found = [
        _select(
            table, f"'{NEW}'", "NULL", _joined("added", others), pairs, "removed._change IS NULL"
        ),
        _select(
            table,
            f"'{STOPPED}'",
            _joined("removed", others),
            "NULL",
            pairs,
            "added._change IS NULL",
        ),
    ]
    for columns, same in groupby(kinds, key=lambda kind: kind.columns):
        texts = (_joined("removed", columns), _joined("added", columns))
        where = f"{both} AND ({_differ(columns)})"
        found.append(_select(table, _first_of(list(same)), *texts, pairs, where))
    seen = tuple(name for kind in kinds for name in kind.columns)
    texts = (_joined("removed", others), _joined("added", others))
    found.append(_select(table, f"'{CHANGED}'", *texts, pairs, f"{both} AND NOT ({_differ(seen)})"))
    return found


def _first_of(kinds: list[Kind]) -> str:
    """The name of the first kind that applies; the last one asks for nothing more."""
    cases = [
        f"WHEN added.{kind.columns[0]} IN ({_texts(kind.becomes)})"
        f" AND coalesce(removed.{kind.columns[0]}, '') NOT IN ({_texts(kind.becomes)})"
        f" THEN '{kind.name}'"
        for kind in kinds
        if kind.becomes
    ]
    last = f"'{kinds[-1].name}'"
    return f"CASE {' '.join(cases)} ELSE {last} END" if cases else last


def _select(table: Table, kind: str, before: str, after: str, source: str, where: str) -> str:
    return (
        f"SELECT '{table.name}' AS table_name, entity_number, {kind} AS kind, {before} AS before,"
        f" {after} AS after FROM {source} WHERE {where}"
    )


def _kept(table: Table) -> str:
    """The changed rows of entities that are neither new nor stopped: of those it is known."""
    return (
        f"SELECT c.{table.key} AS entity_number, c.* FROM {table.name}_changes({_AFTER}) c"
        f" ANTI JOIN come_or_gone g ON g.entity_number = c.{table.key}"
    )


def _of_kept(table: Table) -> str:
    """What became of the rows of a table in which an entity has any number of rows."""
    kinds = [kind for kind in KINDS if kind.table is table and kind.name != CHANGED]
    special = [_renamed() if kind.name == RENAMED else _replaced(kind) for kind in kinds]
    text = _joined("r", table.column_names[1:])
    rest = (
        f"SELECT r.entity_number, '{CHANGED}' AS kind,"
        f" {_gathered(text, 'removed')} AS before, {_gathered(text, 'added')} AS after"
        f" FROM {table.name}_rows r GROUP BY r.entity_number"
    )
    found = rest
    for query in special:
        found = (
            f"SELECT * FROM ({query}) UNION ALL SELECT rest.* FROM ({found}) rest"
            f" ANTI JOIN ({query}) special ON special.entity_number = rest.entity_number"
        )
    return f"SELECT '{table.name}' AS table_name, * FROM ({found})"


def _gathered(text: str, change: str, between: str = "; ") -> str:
    return f"string_agg(DISTINCT {text}, '{between}' ORDER BY {text}) FILTER (_change = '{change}')"


def _renamed() -> str:
    rows = f"{DENOMINATION.name}_rows"
    return (
        f"SELECT r.entity_number, '{RENAMED}' AS kind, b.main_name AS before,"
        f" a.main_name AS after FROM (SELECT DISTINCT entity_number FROM {rows}) r"
        " LEFT JOIN names_before b ON b.entity_number = r.entity_number"
        " LEFT JOIN names_after a ON a.entity_number = r.entity_number"
        " WHERE b.main_name IS DISTINCT FROM a.main_name"
    )


def _replaced(kind: Kind) -> str:
    """Rows went and others came that agree in `beside`, and differ as a whole in `columns`."""
    text = _joined("r", kind.columns)
    beside = ", ".join(f"r.{name}" for name in kind.beside)
    return (
        f"SELECT entity_number, '{kind.name}' AS kind, string_agg(before, '; ' ORDER BY before)"
        " AS before, string_agg(after, '; ' ORDER BY after) AS after FROM ("
        f"SELECT r.entity_number, {_gathered(text, 'removed')} AS before,"
        f" {_gathered(text, 'added')} AS after FROM {kind.table.name}_rows r"
        f" GROUP BY r.entity_number, {beside}) WHERE before <> after GROUP BY entity_number"
    )


def _owners() -> str:
    """The enterprise of each establishment unit and branch, as of the newer of both states."""
    parts = " UNION ALL ".join(
        f"SELECT {table.key} AS entity_number, {ENTERPRISE.key}, {place} AS place"
        f" FROM {table.name}_at({state})"
        f" WHERE {table.key} IN (SELECT entity_number FROM entities)"
        for table in _UNIQUE
        if table is not ENTERPRISE
        for place, state in enumerate((_BEFORE, _AFTER))
    )
    return (
        f"SELECT entity_number, arg_max({ENTERPRISE.key}, place) AS {ENTERPRISE.key}"
        f" FROM ({parts}) GROUP BY entity_number"
    )


def _names(state: str) -> str:
    key = DENOMINATION.key
    source = (
        f"(SELECT d.* FROM {DENOMINATION.name}_at({state}) d"
        f" WHERE d.{key} IN (SELECT entity_number FROM touched))"
    )
    return main_names(source)


def _with() -> str:
    came_or_went = " UNION ALL ".join(
        f"SELECT entity_number FROM {table.name}_pairs"
        " WHERE removed._change IS NULL OR added._change IS NULL"
        for table in _UNIQUE
    )
    touched = " UNION ".join(
        [f"SELECT entity_number FROM {table.name}_pairs" for table in _UNIQUE]
        + [f"SELECT entity_number FROM {table.name}_rows" for table in _OTHERS]
    )
    all_of_them = [
        *(query for table in _UNIQUE for query in _of_pairs(table)),
        *(_of_kept(table) for table in _OTHERS),
    ]
    parts = {
        **{f"{table.name}_pairs": _pairs(table) for table in _UNIQUE},
        "come_or_gone": came_or_went,
        **{f"{table.name}_rows": _kept(table) for table in _OTHERS},
        "touched": touched,
        "names_before": _names(_BEFORE),
        "names_after": _names(_AFTER),
        "classified": " UNION ALL ".join(all_of_them),
        "entities": "SELECT DISTINCT entity_number FROM classified",
        "owners": _owners(),
    }
    return "WITH " + ", ".join(f"{name} AS MATERIALIZED ({q})" for name, q in parts.items())


COUNT_CHANGES = (
    f"{_with()} SELECT table_name, kind, count(*) FROM classified GROUP BY table_name, kind"
)
"""Counts the changed entities by table and kind."""

CHANGED_ENTITIES = f"""
{_with()}
SELECT c.table_name, c.kind, c.entity_number,
    CASE WHEN {is_enterprise_number("c.entity_number")} THEN c.entity_number
        ELSE o.{ENTERPRISE.key} END AS {ENTERPRISE.key},
    coalesce(a.main_name, b.main_name, c.entity_number) AS name, c.before, c.after
FROM classified c
LEFT JOIN names_after a ON a.entity_number = c.entity_number
LEFT JOIN names_before b ON b.entity_number = c.entity_number
LEFT JOIN owners o ON o.entity_number = c.entity_number
ORDER BY list_position([{_texts(tuple(f"{k.table.name} {k.name}" for k in KINDS))}],
    c.table_name || ' ' || c.kind), c.entity_number
"""
"""One row for each kind of change of each entity; `before` and `after` are texts."""
