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

PRIMARY_NAME_COLUMNS = (
    *("primary_name", "primary_name_language"),
    *(f"primary_name_{name}" for name in ("nl", "fr", "de")),
)
"""What an enterprise has besides its own columns."""

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

_PUBLISHED = """SELECT j.extract_number AS number, max(j.snapshot_date) AS snapshot_date
FROM main.import_jobs j
WHERE j.status = 'completed'
GROUP BY j.extract_number"""
"""The numbers of published extracts, each with its date, also inside a macro."""

_FAR_DAY = "9999-12-31"

CURRENT = "{0}._is_current"
"""Whether a row version holds at the newest extract.

`{0}` is the alias of its table, `{1}` its column with the number of the entity that it is about.
"""

AT = """{0}._extract_number <= extract_number
    AND ({0}._deleted_at_extract IS NULL OR {0}._deleted_at_extract > extract_number)"""
"""Whether it holds at the extract that is the argument of a macro."""


def numbers_of(table: Table) -> list[str]:
    """The columns of a table that hold numbers of entities, all of which must be shown."""
    return [column.name for column in table.columns if column.number]


def is_shown(table: Table, holds: str, privacy: Privacy, shown: str = SHOWN) -> str:
    """Whether a row of `s` holds, and all numbers in it may be shown.

    Args:
        table: the table of the row.
        holds: whether it holds.
        privacy: who is left out.
        shown: the table of the numbers that may be shown.
    """
    numbers = numbers_of(table) if privacy != "full" else []
    return all_of(
        [holds]
        + [f"EXISTS (SELECT 1 FROM {shown} h WHERE h.number = s.{name})" for name in numbers]
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
    create = f"CREATE OR REPLACE {kind} {SHOWN} AS\n{shown_numbers()}"
    return (drop, create) if kind == "TABLE" else (create,)


def shown_numbers(until: str | None = None) -> str:
    """The numbers that are shown where only legal persons are; `fill_shown` has the rule.

    Args:
        until: counts row versions up to this extract only, as if there were none after it.
    """
    where = "" if until is None else f"\nWHERE _extract_number <= {until}"
    persons = f"""SELECT {ENTERPRISE.key} AS number,
    bool_and(coalesce(type_of_enterprise = '{_LEGAL_PERSON}', false)) AS is_legal
FROM main.{ENTERPRISE.name}{where}
GROUP BY {ENTERPRISE.key}"""
    owned = (
        f"""SELECT s.{table.key}, coalesce(p.is_legal, false)
FROM main.{table.name} s
LEFT JOIN persons p ON p.number = s.{ENTERPRISE.key}{where}"""
        for table in UNITS
    )
    shown = f"""SELECT number
FROM (
    {indented(union_all(("SELECT * FROM persons", *owned)))}
)
GROUP BY number
HAVING bool_and(is_legal)
ORDER BY number"""
    return with_queries({"persons": persons}, shown, materialized=True)


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
    **others: int | str,
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
        holds: `CURRENT` or `AT`; or one of them with a condition on `{1}`.
        privacy: who is left out.
    """
    columns = [f"s.{name}" for name in table.column_names]
    owner = ENTERPRISE.key if table in UNITS else table.key
    where = f"WHERE {is_shown(table, holds.format('s', owner), privacy)}"
    if table is not ENTERPRISE:
        return f"SELECT {listed(columns)}\nFROM main.{table.name} s\n{where}"
    query = f"""SELECT {listed([*columns, *_primary_name(table.key)])}
FROM main.{table.name} s
LEFT JOIN names n ON n.{DENOMINATION.key} = s.{table.key}
{where}"""
    return with_queries({"names": _names(holds)}, query)


def _names(holds: str, source: str = f"main.{DENOMINATION.name} d") -> str:
    names = [
        f"{smallest_name('001', code)} AS name_{name}" for code, name in PRIMARY_NAME_LANGUAGES
    ]
    return f"""SELECT {listed([f"d.{DENOMINATION.key}", *names])}
FROM {source}
WHERE d.type_of_denomination = '001' AND {holds.format("d", DENOMINATION.key)}
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
WHERE {is_shown(table, f"s.{column} = extract_number", privacy)}"""
        for change, column in (("removed", "_deleted_at_extract"), ("added", "_extract_number"))
    )


def stopped_enterprises(privacy: Privacy) -> str:
    """The enterprises that had gone by the extract of a macro's argument, as they were at last.

    Args:
        privacy: who is left out.
    """
    key = ENTERPRISE.key
    ended = "s._deleted_at_extract <= extract_number"
    stopped = f"""SELECT {listed([*(f"s.{name}" for name in ENTERPRISE.column_names)])},
    s._deleted_at_extract AS stopped_at_extract
FROM main.{ENTERPRISE.name} s
WHERE {is_shown(ENTERPRISE, ended, privacy)}
    AND NOT EXISTS (
        SELECT 1
        FROM main.{ENTERPRISE.name} later
        WHERE later.{key} = s.{key}
            AND later._extract_number <= extract_number
            AND (later._deleted_at_extract IS NULL
                OR later._deleted_at_extract > s._deleted_at_extract))"""
    before = """{0}._extract_number < g.stopped_at_extract
    AND ({0}._deleted_at_extract IS NULL OR {0}._deleted_at_extract >= g.stopped_at_extract)"""
    named = f"main.{DENOMINATION.name} d\nJOIN stopped g ON g.{key} = d.{DENOMINATION.key}"
    columns = [f"s.{name}" for name in ENTERPRISE.column_names]
    query = f"""SELECT {listed([*columns, *_primary_name(key)])},
    seen.number AS last_extract_number, seen.snapshot_date AS last_snapshot_date,
    s.stopped_at_extract
FROM stopped s
LEFT JOIN names n ON n.{DENOMINATION.key} = s.{key}
ASOF LEFT JOIN published seen ON seen.number < s.stopped_at_extract"""
    queries = {"stopped": stopped, "names": _names(before, named), "published": _PUBLISHED}
    return with_queries(queries, query)


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


def state_at(table: Table) -> str:
    """All rows of a table as they are at an extract, whoever they are about; binds `$number`."""
    return f"""SELECT {listed(table.column_names)}
FROM main.{table.name}
WHERE _extract_number <= $number
    AND (_deleted_at_extract IS NULL OR _deleted_at_extract > $number)"""


def state_now(table: Table) -> str:
    """`state_at` the newest extract, as views that ask `_is_current` have it.

    A row whose marks contradict each other was changed by hand: it is there twice, or not at all.
    """
    rows = f"SELECT {listed(table.column_names)}\nFROM main.{table.name}\nWHERE _is_current"
    ended = "(_deleted_at_extract IS NOT NULL OR _extract_number > $number)"
    return union_all((rows, f"{rows} AND {ended}"))


def content_of(table: Table, rows: str) -> str:
    """Counts and hashes the rows of a query on a table, in any order.

    The hash is the sum of the lower halves of the MD5 of each row: its values as text, nothing for
    none, with the character 31 between them. So any database can compute it.
    """
    values = (f"coalesce({name}::VARCHAR, '')" for name in table.column_names)
    return f"""SELECT '{table.name}' AS table_name, count(*) AS row_count,
    coalesce(sum(md5_number_lower(concat_ws(
        chr(31), {listed(values, by=8)}))), 0)::VARCHAR AS row_hash
FROM (
    {indented(rows)}
)"""


CONTENT_OF_TABLES = union_all(
    f"""SELECT '{t.name}' AS table_name, count(*) AS row_count,
    sum(hash({listed((*t.column_names, *_VERSION), by=8)}))::VARCHAR AS row_hash
FROM {t.name}"""
    for t in ALL_TABLES
)
"""Counts and hashes all row versions of each table, whatever the order of rows and columns."""
