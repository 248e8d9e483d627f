"""The views and macros of a published register: their names, and the statements that make them.

The texts name no database, because readers open the published file under a name of their own; so
the register must be the default database when they are made.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256

from kbo_pipeline.core.database import literal
from kbo_pipeline.core.settings import Privacy
from kbo_pipeline.core.tables import ALL_TABLES, ENTERPRISE
from kbo_pipeline.read.profile_sql import activity_described, nace, profile, source
from kbo_pipeline.read.state_sql import AT, CURRENT, changes, fill_shown, state

PROFILE = "enterprise_profile"


def view_queries(privacy: Privacy) -> dict[str, str]:
    """The query of each view in the schema `current`, by its name."""
    return {
        **{table.name: state(table, CURRENT, privacy) for table in ALL_TABLES},
        PROFILE: profile(CURRENT, privacy),
        "activity_described": activity_described(privacy),
        "nace": nace(),
        "source": source(privacy),
    }


def macro_queries(privacy: Privacy) -> dict[str, str]:
    """The query of each table macro, by its name; all take an extract number."""
    return {
        **{f"{table.name}_at": state(table, AT, privacy) for table in ALL_TABLES},
        **{f"{table.name}_changes": changes(table, privacy) for table in ALL_TABLES},
        f"{PROFILE}_at": profile(AT, privacy),
    }


def create_views(privacy: Privacy, below: Sequence[str] = ()) -> tuple[str, ...]:
    """Creates all views and macros, in place of those that are there, and what they look at.

    Args:
        privacy: who is in them.
        below: statements that make what they look at, where that is no table.
    """
    marked = f"COMMENT ON VIEW {_MARKED} IS {literal(mark(privacy, below))}"
    return (*below, *_statements(privacy), marked)


def export_queries(privacy: Privacy) -> dict[str, str]:
    """The query of each relation that is exported, sorted by its key, by its name."""
    queries = view_queries(privacy)
    keys = {table.name: ", ".join(table.column_names) for table in ALL_TABLES}
    keys[PROFILE] = ENTERPRISE.key
    return {name: f"{queries[name]} ORDER BY {key}" for name, key in keys.items()}


_MARKED = '"current".source'

READ_MARK = (
    "SELECT comment FROM duckdb_views() WHERE schema_name = 'current' AND view_name = 'source'"
    " AND database_name = current_database()"
)
"""Reads the mark of a register's views; no row where they are older than marks are."""


def mark(privacy: Privacy, below: Sequence[str] = ()) -> str:
    """Tells views that were made by these statements from others; takes what they take."""
    return sha256(";".join((*below, *_statements(privacy))).encode()).hexdigest()[:16]


def _statements(privacy: Privacy) -> Iterator[str]:
    yield from fill_shown(privacy)
    yield 'CREATE SCHEMA IF NOT EXISTS "current"'
    for name, query in view_queries(privacy).items():
        yield f'CREATE OR REPLACE VIEW "current".{name} AS {query}'
    for name, query in macro_queries(privacy).items():
        yield f"CREATE OR REPLACE MACRO {name}(extract_number) AS TABLE {query}"
