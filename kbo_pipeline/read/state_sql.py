"""SQL that readers use: views and macros of the tables, and what is counted for them.

Each query is whole by itself: it reads the tables in `main` and no view, so that what
`KBO_PRIVACY` leaves out is left out also where views were made under another setting.
"""

from kbo_pipeline.core.settings import Privacy
from kbo_pipeline.core.sql import all_of, indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import ADDRESS, ALL_TABLES, DENOMINATION, ENTERPRISE, TABLES, Table

PRIMARY_NAME_LANGUAGES = (("2", "nl"), ("1", "fr"), ("0", "unknown"), ("3", "de"), ("4", "en"))
"""KBO's language codes in the order in which a primary name is chosen."""

_NAME_COLUMNS = (
    "primary_name",
    "primary_name_language",
    "primary_name_nl",
    "primary_name_fr",
    "primary_name_de",
)

_LEGAL_PERSON = "2"  # type_of_enterprise

SHOWN = "legal_person_number"
"""The numbers of legal persons, their establishment units and branches, where only these are shown.

A table of the published file; an export, which only reads that, has a temporary one. Gathered once,
because a query on a single enterprise would take a second otherwise. What is not in it is left out,
whether it is a natural person's or nobody knows whose.
"""

HIDDEN_BEFORE = "natural_person_number"
"""What registers of earlier versions have in its place: the numbers of natural persons alone."""

_FAR_DAY = "9999-12-31"

CURRENT = "{0}._is_current"
"""Whether a row version holds at the newest extract, for an alias."""

AT = """{0}._extract_number <= extract_number
    AND ({0}._deleted_at_extract IS NULL OR {0}._deleted_at_extract > extract_number)"""
"""Whether it holds at the extract that a macro is asked for."""


def _shown(table: Table, holds: str, privacy: Privacy) -> str:
    """Whether a row of `s` holds, and all numbers in it are of legal persons or what is theirs."""
    numbers = [column.name for column in table.columns if column.number and privacy != "full"]
    return all_of(
        [holds]
        + [f"EXISTS (SELECT 1 FROM {SHOWN} h WHERE h.number = s.{name})" for name in numbers]
    )


def fill_shown(privacy: Privacy, kind: str = "TABLE") -> tuple[str, ...]:
    """Makes the table `SHOWN` of who is shown; drops it where everybody is.

    A legal person is one in all its row versions; what belongs to it belonged to legal persons in
    all of its own. A number that is in several tables must be shown by each.

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
        for table in TABLES
        if ENTERPRISE.key in table.column_names[1:]
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


def address_order(alias: str) -> str:
    """Which address of several goes first, as a value to sort by: the smallest one does.

    A valid one before those that are struck off, of these the one that was last; then by columns.
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
    """The rows of a table that hold; of entities, with their primary names.

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
    """Of the grouped names `d`, the smallest of a type in a language."""
    return (
        f"min(d.denomination) FILTER (d.type_of_denomination = '{kind}'"
        f" AND d.language = '{language}')"
    )


def chosen_name(kind: str) -> str:
    """Of the grouped names `d`, the one of a type in the first language that has any."""
    names = (smallest_name(kind, code) for code, _ in PRIMARY_NAME_LANGUAGES)
    return f"coalesce({listed(names, by=8)})"


def _primary_name(key: str) -> tuple[str, ...]:
    """The rule: the first language that has a name of type 001; else the entity's number."""
    in_order = [f"n.name_{name}" for _, name in PRIMARY_NAME_LANGUAGES]
    languages = (
        f"WHEN n.name_{name} IS NOT NULL THEN '{code}'" for code, name in PRIMARY_NAME_LANGUAGES
    )
    expressions = (
        f"coalesce({', '.join(in_order)}, s.{key})",
        f"CASE {listed(languages, ' ')} END",
        "n.name_nl",
        "n.name_fr",
        "n.name_de",
    )
    return tuple(f"{e} AS {c}" for e, c in zip(expressions, _NAME_COLUMNS, strict=True))


def changes(table: Table, privacy: Privacy) -> str:
    """What the extract that a macro is asked for changed in a table."""
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
"""Counts the current entities whose primary name was resolved anew for an extract."""

_VERSION = ("_snapshot_date", "_extract_number", "_deleted_at_extract", "_is_current")

CONTENT_OF_TABLES = union_all(
    f"""SELECT '{t.name}' AS table_name, count(*) AS row_count,
    sum(hash({listed((*t.column_names, *_VERSION), by=8)}))::VARCHAR AS row_hash
FROM {t.name}"""
    for t in ALL_TABLES
)
"""Counts and hashes all row versions of each table, whatever the order of rows and columns."""
