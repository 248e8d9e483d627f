"""The layout of a register: which one it has, and making that of today of it. No Dagster.

A register counts in `schema_version` which numbered migrations it has had. Which columns of KBO's
its tables lack is looked up, so that a new one needs a declaration and nothing else. A writer
changes the layout together with what it writes first; a reader never does, and is shown an older
register as if it were of today.
"""

from collections.abc import Mapping

import duckdb

from kbo_pipeline.core import schema_sql
from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.schema_sql import (
    MIGRATIONS,
    SCHEMA_VERSION,
    VERSION_COLUMNS,
    VERSION_TABLE,
    create_ledger,
    create_register_table,
)
from kbo_pipeline.core.tables import ALL_TABLES

Layout = Mapping[str, Mapping[str, str]]
"""Types of columns, by the names of tables and columns, in their order."""

OWN_COLUMNS = {column.split(" ", 1)[0] for column in VERSION_COLUMNS}


def layout_of(connection: duckdb.DuckDBPyConnection, database: str, schema: str) -> Layout:
    """The columns of the tables and views of a schema."""
    found: dict[str, dict[str, str]] = {}
    values = {"database": database, "schema": schema}
    for table, column, kind in connection.execute(schema_sql.COLUMNS, values).fetchall():
        found.setdefault(table, {})[column] = kind
    return found


def create(database: Database, *, has_keys: bool) -> None:
    """Makes an empty register of today in the default schema; part of the caller's transaction."""
    for table in ALL_TABLES:
        database.execute(create_register_table(table))
    for statement in create_ledger(has_keys=has_keys):
        database.execute(statement)
    _migrate(database, 0)


def is_register(connection: duckdb.DuckDBPyConnection) -> bool:
    """Tells whether a register is in the default schema, of whatever layout."""
    return _has_ledger(layout_of(connection, *_default(connection)))


def migrate(database: Database) -> bool:
    """Makes the register in the default schema one of today; part of the caller's transaction.

    Returns:
        Whether there is a table or column of KBO's that was not there.
    """
    layout = layout_of(database.connection, *_default(database.connection))
    _migrate(database, _version(database.connection, layout))
    is_widened = False
    for table in ALL_TABLES:
        database.execute(create_register_table(table))
        there = layout.get(table.name)
        missing = [c for c in table.columns if there is not None and c.name not in there]
        for column in missing:
            database.execute(schema_sql.add_column(table, column))
        is_widened |= bool(missing) or there is None
    return is_widened


def check(connection: duckdb.DuckDBPyConnection, place: Place) -> None:
    """Makes sure that this program knows all that the register in the default schema has.

    Raises:
        RegisterError: it does not; says what to do.
    """
    layout = layout_of(connection, *_default(connection))
    _check_version(_version(connection, layout), place)
    for table in ALL_TABLES:
        known = {*table.column_names, *OWN_COLUMNS}
        unknown = [name for name in layout.get(table.name, ()) if name not in known]
        if unknown:
            raise RegisterError(
                f"{place}: {table.name} has {', '.join(unknown)}, which this kbo_pipeline does not"
                " know; upgrade it, or declare that in its tables.py"
            )


def _has_ledger(layout: Layout) -> bool:
    return {"import_jobs", "import_job_batches"} <= layout.keys()


def _migrate(database: Database, version: int) -> None:
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in migration.statements:
            database.execute(statement)
        database.execute(schema_sql.NOTE_VERSION, version=number, description=migration.description)


def _check_version(version: int, place: Place) -> None:
    if version > SCHEMA_VERSION:
        raise RegisterError(
            f"{place}: a register of version {version}, and this kbo_pipeline knows"
            f" {SCHEMA_VERSION}; upgrade it"
        )


def _version(
    connection: duckdb.DuckDBPyConnection, layout: Layout, schema: str | None = None
) -> int:
    """Which version a register has; 0 for one of before there were any."""
    if VERSION_TABLE not in layout:
        return 0
    ((version,),) = connection.execute(schema_sql.read_version(schema)).fetchall()
    return int(version or 0)


def _default(connection: duckdb.DuckDBPyConnection) -> tuple[str, str]:
    """The names of the default database and of its default schema."""
    ((database, schema),) = connection.execute(schema_sql.DEFAULT_SCHEMA).fetchall()
    return str(database), str(schema)
