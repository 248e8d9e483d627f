"""SQL that readers use: rows that hold, names, who is shown, and what is counted of them.

Each query reads the tables in `main` and no view, so that `KBO_PRIVACY` holds even if views were
made under another setting.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.sql import all_of, indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import (
    ADDRESS,
    ALL_TABLES,
    DENOMINATION,
    ENTERPRISE,
    ENTERPRISE_NUMBER,
    UNITS,
    Privacy,
    Table,
)

PRIMARY_NAME_LANGUAGES = (("2", "nl"), ("1", "fr"), ("0", "unknown"), ("3", "de"), ("4", "en"))
"""KBO's language codes in the order in which a primary name is chosen."""

NAME_TYPES = ("001", "003", "004", "002")
"""Types of names in the order in which a main name is chosen; of enterprises only the first."""

_MOST = 500  # values that one statement asks for

_LEGAL_PERSON = "2"  # type_of_enterprise

EXTRACTS = """
SELECT id, extract_number, extract_type, snapshot_date
FROM import_jobs
WHERE status = 'completed'
ORDER BY extract_number DESC, completed_at DESC
"""
"""The published extracts, the newest first."""

SHOWN = "legal_person_number"
"""The numbers of legal persons, their establishment units and branches, where only these are shown.

A table of the published file; an export, which only reads that, has a temporary one. It is filled
once, because a query on a single enterprise would take a second otherwise. What is not in it is
left out, whether it is a natural person's or its owner is unknown.
"""

HIDDEN_BEFORE = "natural_person_number"
"""Its predecessor in registers of earlier versions: the numbers of natural persons alone."""

HIDES = f"""
SELECT 1
FROM duckdb_tables()
WHERE database_name = current_database() AND schema_name = 'main' AND table_name = '{SHOWN}'
"""
"""Tells whether the register leaves anybody out: no row where it does not."""

_FAR_DAY = "9999-12-31"

CURRENT = "{0}._is_current"
"""Whether a row version holds at the newest extract; `{0}` is the alias of its table."""

AT = """{0}._extract_number <= extract_number
    AND ({0}._deleted_at_extract IS NULL OR {0}._deleted_at_extract > extract_number)"""
"""Whether it holds at the extract that is the argument of a macro."""


def _shown(table: Table, holds: str, privacy: Privacy) -> str:
    """Whether a row of `s` holds, and all numbers in it may be shown."""
    numbers = [column.name for column in table.columns if column.number and privacy != "full"]
    return all_of(
        [holds]
        + [f"EXISTS (SELECT 1 FROM {SHOWN} h WHERE h.number = s.{name})" for name in numbers]
    )


def fill_shown(privacy: Privacy, kind: str = "TABLE") -> tuple[str, ...]:
    """Makes the table `SHOWN`; drops it where everybody is shown.

    A legal person must be one in all its row versions, and a unit must belong to legal persons in
    all of its own. A number in several tables must be shown by each of them.

    Args:
        privacy: who is shown.
        kind: `TABLE`, or `TEMP TABLE` beside a register that is only read.
    """
    drop = f"DROP TABLE IF EXISTS {HIDDEN_BEFORE}"
    if privacy == "full":
        return (drop, f"DROP TABLE IF EXISTS {SHOWN}")
    persons = f"""SELECT {ENTERPRISE.key} AS number,
    bool_and(coalesce(type_of_enterprise = '{_LEGAL_PERSON}', false)) AS is_legal
FROM main.{ENTERPRISE.name}
GROUP BY {ENTERPRISE.key}"""
    owned = (
        f"""SELECT s.{table.key}, coalesce(p.is_legal, false)
FROM main.{table.name} s
LEFT JOIN persons p ON p.number = s.{ENTERPRISE.key}"""
        for table in UNITS
    )
    shown = f"""SELECT number
FROM (
    {indented(union_all(("SELECT * FROM persons", *owned)))}
)
GROUP BY number
HAVING bool_and(is_legal)
ORDER BY number"""
    query = with_queries({"persons": persons}, shown, materialized=True)
    create = f"CREATE OR REPLACE {kind} {SHOWN} AS\n{query}"
    return (drop, create) if kind == "TABLE" else (create,)


def placeholders(name: str, count: int) -> str:
    """The placeholders `$name0`, `$name1`, ...: zone maps answer an IN of single values only."""
    return listed((f"${name}{place}" for place in range(count)), by=8)


def bind(name: str, values: Iterable[str]) -> dict[str, str]:
    """The values of these placeholders."""
    return {f"{name}{place}": value for place, value in enumerate(values)}


def rows_for(
    database: Database,
    statement: Callable[[int], str],
    name: str,
    values: Sequence[str],
    **others: int,
) -> list[tuple[Any, ...]]:
    """The rows of any number of values, some hundred of them in each statement.

    Args:
        database: a published register.
        statement: makes the statement for so many values, with placeholders of this name.
        name: of the placeholders.
        values: the values.
        others: what else is bound.
    """
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(values), _MOST):
        piece = values[start : start + _MOST]
        rows += database.execute(statement(len(piece)), **bind(name, piece), **others).fetchall()
    return rows


def address_order(alias: str) -> str:
    """A value to sort addresses by.

    Valid ones come first, then those that were struck off last; the columns break ties.
    """
    struck_off = f"{alias}.date_striking_off"
    values = (f"{name} := {alias}.{name}" for name in ADDRESS.column_names[1:])
    fields = (
        f"is_struck_off := {struck_off} IS NOT NULL",
        f"days := coalesce(DATE '{_FAR_DAY}' - {struck_off}, 0)",
        *values,
    )
    return f"struct_pack({listed(fields, by=8)})"


def state(table: Table, holds: str, privacy: Privacy) -> str:
    """The rows of a table that hold; enterprises with their primary names.

    Args:
        table: the table.
        holds: `CURRENT` or `AT`.
        privacy: who is left out.
    """
    columns = [f"s.{name}" for name in table.column_names]
    where = f"WHERE {_shown(table, holds.format('s'), privacy)}"
    if table is not ENTERPRISE:
        return f"SELECT {listed(columns)}\nFROM main.{table.name} s\n{where}"
    query = f"""SELECT {listed([*columns, *_primary_name(table.key)])}
FROM main.{table.name} s
LEFT JOIN names n ON n.{DENOMINATION.key} = s.{table.key}
{where}"""
    return with_queries({"names": _names(holds)}, query)


def _names(holds: str) -> str:
    names = [
        f"{smallest_name('001', code)} AS name_{name}" for code, name in PRIMARY_NAME_LANGUAGES
    ]
    return f"""SELECT {listed([f"d.{DENOMINATION.key}", *names])}
FROM main.{DENOMINATION.name} d
WHERE d.type_of_denomination = '001' AND {holds.format("d")}
GROUP BY d.{DENOMINATION.key}"""


def smallest_name(kind: str, language: str) -> str:
    """The smallest of the grouped names `d` of a type in a language."""
    return (
        f"min(d.denomination) FILTER (d.type_of_denomination = '{kind}'"
        f" AND d.language = '{language}')"
    )


def chosen_name(kind: str) -> str:
    """The one of the grouped names `d` of a type in the first language that has any."""
    names = (smallest_name(kind, code) for code, _ in PRIMARY_NAME_LANGUAGES)
    return f"coalesce({listed(names, by=8)})"


def quoted(values: Iterable[str]) -> str:
    """Values, none with a quote in it, as a list of SQL."""
    return listed((f"'{value}'" for value in values), by=8)


def is_enterprise_number(expression: str) -> str:
    """Tells a number of an enterprise from one of an establishment unit or branch."""
    return f"{expression}[1] IN ({quoted(ENTERPRISE_NUMBER)})"


def main_names(source: str) -> str:
    """The main name of each entity of a relation of names; those without one are left out.

    Of an enterprise its primary name; of others the same choice of languages among the names of
    the first of `NAME_TYPES` that has any.
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


def _primary_name(key: str) -> tuple[str, ...]:
    """The rule: the first language that has a name of type 001; else the entity's number."""
    in_order = ", ".join(f"n.name_{name}" for _, name in PRIMARY_NAME_LANGUAGES)
    languages = (
        f"WHEN n.name_{name} IS NOT NULL THEN '{code}'" for code, name in PRIMARY_NAME_LANGUAGES
    )
    return (
        f"coalesce({in_order}, s.{key}) AS primary_name",
        f"CASE {listed(languages, ' ')} END AS primary_name_language",
        *(f"n.name_{name} AS primary_name_{name}" for name in ("nl", "fr", "de")),
    )


def changes(table: Table, privacy: Privacy) -> str:
    """The rows that the extract of a macro's argument removed from a table, and added to it."""
    columns = listed(table.column_names)
    return union_all(
        f"""SELECT '{change}' AS _change, {columns}
FROM main.{table.name} s
WHERE {_shown(table, f"s.{column} = extract_number", privacy)}"""
        for change, column in (("removed", "_deleted_at_extract"), ("added", "_extract_number"))
    )


COUNT_NAMES_RESOLVED = f"""
SELECT count(*)
FROM {ENTERPRISE.name} e
WHERE e._is_current AND (e._extract_number = $number OR e.{ENTERPRISE.key} IN (
    SELECT {DENOMINATION.key}
    FROM {DENOMINATION.name}
    WHERE type_of_denomination = '001' AND $number IN (_extract_number, _deleted_at_extract)))
"""
"""Counts the current enterprises whose primary name an extract may have changed."""

_VERSION = ("_snapshot_date", "_extract_number", "_deleted_at_extract", "_is_current")

CONTENT_OF_TABLES = union_all(
    f"""SELECT '{t.name}' AS table_name, count(*) AS row_count,
    sum(hash({listed((*t.column_names, *_VERSION), by=8)}))::VARCHAR AS row_hash
FROM {t.name}"""
    for t in ALL_TABLES
)
"""Counts and hashes all row versions of each table, whatever the order of rows and columns."""
