"""SQL of a register's layout: its version, what it has, and the columns that it is still to get.

The register is the default database of the connection; of a shared one its schema at work.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.tables import Column, Table
from kbo_pipeline.sql.staging import CREATE_REJECTED

VERSION_TABLE = "schema_version"

CREATE_VERSION = (
    f"CREATE TABLE {VERSION_TABLE} (version INTEGER NOT NULL, description VARCHAR NOT NULL,"
    " migrated_at TIMESTAMPTZ NOT NULL)"
)

NOTE_VERSION = f"INSERT INTO {VERSION_TABLE} VALUES ($version, $description, now())"


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step from a layout to the next; its number is its place in `MIGRATIONS`.

    Attributes:
        description: what it does, for people.
        statements: its SQL, without constraints: a lake has none.
    """

    description: str
    statements: tuple[str, ...]


MIGRATIONS: tuple[Migration, ...] = (
    Migration("The register says which layout it has.", (CREATE_VERSION,)),
    Migration("Rows that are set aside are kept.", (CREATE_REJECTED,)),
)
"""What made the layout of today of that of the first release; a new register has them all, too.

Only ever appended to. Columns of KBO's tables are none of it: those come from their declarations.
"""

SCHEMA_VERSION = len(MIGRATIONS)
"""The layout that this program writes; a register that says nothing of it has 0."""


def read_version(schema: str | None) -> str:
    """Reads the version of a register that says one; in the default schema without another."""
    return f"SELECT max(version) FROM {f'{schema}.' if schema else ''}{VERSION_TABLE}"


DEFAULT_SCHEMA = "SELECT current_database(), current_schema()"

COLUMNS = """
SELECT table_name, column_name, data_type FROM duckdb_columns()
WHERE database_name = $database AND schema_name = $schema ORDER BY table_name, column_index
"""
"""Names and columns of all tables and views of a schema."""


def add_column(table: Table, column: Column) -> str:
    """Adds a column without values to a table of the register."""
    return f"ALTER TABLE {table.name} ADD COLUMN {column.name} {column.type}"


def show_older(name: str, source: str, columns: Mapping[str, str], there: Collection[str]) -> str:
    """Shows a table of an older register with the columns of today.

    Args:
        name: the table.
        source: the schema that it is in.
        columns: types of today, by their names.
        there: the names of those that it has; none when the table is not there.
    """
    listed = ", ".join(
        column if column in there else f"NULL::{kind} AS {column}"
        for column, kind in columns.items()
    )
    rows = f"FROM {source}.{name}" if there else "WHERE false"
    return f"CREATE VIEW main.{name} AS SELECT {listed} {rows}"


def attach_empty(name: str) -> str:
    """Attaches an empty database in memory."""
    return f"ATTACH {literal(':memory:')} AS {name}"
