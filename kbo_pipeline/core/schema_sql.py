"""SQL of a register's layout: its version, what it has, and the columns that it is still to get.

The register is the default database of the connection; of a shared one its schema at work.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kbo_pipeline.core.database import literal
from kbo_pipeline.core.tables import Column, Table

VERSION_TABLE = "schema_version"

CREATE_VERSION = f"""
CREATE TABLE {VERSION_TABLE} (
    version INTEGER NOT NULL,
    description VARCHAR NOT NULL,
    migrated_at TIMESTAMPTZ NOT NULL
)
"""

NOTE_VERSION = f"INSERT INTO {VERSION_TABLE} VALUES ($version, $description, now())"

_OPERATIONS = "'delete', 'insert'"
STATUSES = """(
        'pending', 'processing', 'completed', 'failed', 'cancelled', 'rolled_back')"""

CREATE_REJECTED = """
CREATE TABLE IF NOT EXISTS rejected_row (
    extract VARCHAR NOT NULL, file VARCHAR NOT NULL, line BIGINT NOT NULL, raw VARCHAR NOT NULL,
    column_name VARCHAR, reason VARCHAR NOT NULL
)
"""
"""The records that are set aside: where they stood, and the first thing that is wrong with each.

In a staging file, and likewise in the register, which gets them from there when it is published.
"""


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
    listed = ",\n    ".join(
        column if column in there else f"NULL::{kind} AS {column}"
        for column, kind in columns.items()
    )
    rows = f"FROM {source}.{name}" if there else "WHERE false"
    return f"CREATE VIEW main.{name} AS\nSELECT {listed}\n{rows}"


def attach_empty(name: str) -> str:
    """Attaches an empty database in memory."""
    return f"ATTACH {literal(':memory:')} AS {name}"


VERSION_COLUMNS = (
    "_snapshot_date DATE NOT NULL",
    "_extract_number INTEGER NOT NULL",
    "_deleted_at_extract INTEGER",
    "_is_current BOOLEAN NOT NULL",
)
"""What each register table has besides the columns of its CSV."""


def create_register_table(table: Table) -> str:
    """Creates a register table, when it is not there."""
    columns = [
        f"{c.name} {c.type}{' NOT NULL' if c.name == table.key else ''}" for c in table.columns
    ]
    listed = ",\n    ".join((*columns, *VERSION_COLUMNS))
    return f"CREATE TABLE IF NOT EXISTS {table.name} (\n    {listed}\n)"


def create_ledger(*, has_keys: bool = True) -> tuple[str, str]:
    """Creates the ledger as the first release had it; without constraints where there are none.

    A shared register has none: there, the write lock does what unique keys do here.
    """

    def constraint(text: str) -> str:
        return text if has_keys else ""

    status = f"status VARCHAR NOT NULL{constraint(f' CHECK (status IN {STATUSES})')}"
    operation = f"VARCHAR NOT NULL{constraint(f' CHECK (operation IN ({_OPERATIONS}))')}"
    return (
        f"""
CREATE TABLE import_jobs (
    id VARCHAR NOT NULL{constraint(" PRIMARY KEY")},
    extract_number INTEGER NOT NULL,
    extract_type VARCHAR NOT NULL,
    snapshot_date DATE NOT NULL,
    extract_timestamp TIMESTAMP NOT NULL,
    source_file VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    {status},
    total_batches INTEGER NOT NULL,
    names_resolved BIGINT,
    error_message VARCHAR,
    created_at TIMESTAMPTZ NOT NULL,
    started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ
)
""",
        f"""
CREATE TABLE import_job_batches (
    job_id VARCHAR NOT NULL,
    table_name VARCHAR NOT NULL,
    batch_number INTEGER NOT NULL,
    operation {operation},
    {status},
    records_count BIGINT NOT NULL,
    attempts INTEGER NOT NULL,
    started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ,
    error_message VARCHAR,
    rows_closed BIGINT NOT NULL DEFAULT 0,
    rows_opened BIGINT NOT NULL DEFAULT 0,
    rows_unchanged BIGINT NOT NULL DEFAULT 0,
    duplicates_dropped BIGINT NOT NULL DEFAULT 0
    {constraint(", PRIMARY KEY (job_id, table_name, batch_number, operation)")}
)
""",
    )
