"""The layout of a register: its SQL, which version one has, and bringing it up to date.

A register counts in `schema_version` which numbered migrations it has had. Which columns of KBO's
its tables lack is looked up, so that a new one needs a declaration and nothing else. A writer
changes the layout together with what it writes first; a reader never does, and is shown an older
register as if it were up to date. The register is the default database of the connection, or its
schema at work where it is shared.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import duckdb

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.tables import ALL_TABLES, Table

VERSION_TABLE = "schema_version"

VERSION_COLUMNS = (
    "_snapshot_date DATE NOT NULL",
    "_extract_number INTEGER NOT NULL",
    "_deleted_at_extract INTEGER",
    "_is_current BOOLEAN NOT NULL",
)
"""What each register table has besides the columns of its CSV."""

OWN_COLUMNS = {column.split(" ", 1)[0] for column in VERSION_COLUMNS}

_CREATE_VERSION = f"""
CREATE TABLE {VERSION_TABLE} (
    version INTEGER NOT NULL,
    description VARCHAR NOT NULL,
    migrated_at TIMESTAMPTZ NOT NULL
)
"""

_NOTE_VERSION = f"INSERT INTO {VERSION_TABLE} VALUES ($version, $description, now())"
_OPERATIONS = "'delete', 'insert'"

_STATUSES = """(
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


_CREATE_PROOF = """
CREATE TABLE proof (
    extract_number INTEGER NOT NULL, verified_at TIMESTAMPTZ NOT NULL, is_equal BOOLEAN NOT NULL,
    rows_compared BIGINT NOT NULL, rows_differing BIGINT NOT NULL, full_sha256 VARCHAR NOT NULL,
    content_hash VARCHAR NOT NULL
)
"""
"""How the state at an extract compared with the Full of its number, the last time that it was."""


_CREATE_CORRECTION = """
CREATE TABLE correction (
    extract_number INTEGER NOT NULL, table_name VARCHAR NOT NULL, key VARCHAR NOT NULL
)
"""
"""The keys whose rows were not those of the Full by which the number of an extract was repaired."""


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
    Migration("The register says which layout it has.", (_CREATE_VERSION,)),
    Migration("Rows that are set aside are kept.", (CREATE_REJECTED,)),
    Migration("Comparisons with a Full are kept.", (_CREATE_PROOF,)),
    Migration("Corrected keys are kept.", (_CREATE_CORRECTION,)),
)
"""The steps from the layout of the first release to the current one, also for a new register.

Only ever appended to. Columns of KBO's tables are not among them: they follow the declarations.
"""

SCHEMA_VERSION = len(MIGRATIONS)
"""The version of the layout that this program writes; a register without a version has 0."""

Layout = Mapping[str, Mapping[str, str]]
"""Types of columns, by the names of tables and columns, in their order."""

_COLUMNS = """
SELECT table_name, column_name, data_type FROM duckdb_columns()
WHERE database_name = $database AND schema_name = $schema ORDER BY table_name, column_index
"""


def show_older(name: str, source: str, columns: Mapping[str, str], there: Collection[str]) -> str:
    """Shows a table of an older register with the current columns.

    They are qualified, because DuckDB takes a bare one for an argument of a macro that reads the
    view, if that is called so.

    Args:
        name: the table.
        source: the schema that it is in.
        columns: current types by column name.
        there: names of the columns that it has; empty when the table is missing.
    """
    listed = ",\n    ".join(
        f"older.{column}" if column in there else f"NULL::{kind} AS {column}"
        for column, kind in columns.items()
    )
    rows = f"FROM {source}.{name} older" if there else "WHERE false"
    return f"CREATE VIEW main.{name} AS\nSELECT {listed}\n{rows}"


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

    status = f"status VARCHAR NOT NULL{constraint(f' CHECK (status IN {_STATUSES})')}"
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


def layout_of(connection: duckdb.DuckDBPyConnection, database: str, schema: str) -> Layout:
    """The columns of the tables and views of a schema."""
    layout: dict[str, dict[str, str]] = {}
    values = {"database": database, "schema": schema}
    for table, column, kind in connection.execute(_COLUMNS, values).fetchall():
        layout.setdefault(table, {})[column] = kind
    return layout


def create(database: Database, *, has_keys: bool) -> None:
    """Makes an empty register in the default schema; part of the caller's transaction."""
    for table in ALL_TABLES:
        database.execute(create_register_table(table))
    for statement in create_ledger(has_keys=has_keys):
        database.execute(statement)
    _migrate(database, 0)


def is_register(connection: duckdb.DuckDBPyConnection) -> bool:
    """Tells whether a register is in the default schema, of whatever layout."""
    return has_ledger(layout_of(connection, *_default(connection)))


def migrate(database: Database) -> bool:
    """Brings the register in the default schema up to date; part of the caller's transaction.

    Returns:
        Whether a table or column of KBO's was added.
    """
    layout = layout_of(database.connection, *_default(database.connection))
    _migrate(database, version_of(database.connection, layout))
    is_widened = False
    for table in ALL_TABLES:
        database.execute(create_register_table(table))
        there = layout.get(table.name)
        missing = [c for c in table.columns if there is not None and c.name not in there]
        for column in missing:
            database.execute(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {column.type}")
        is_widened |= bool(missing) or there is None
    return is_widened


def check(connection: duckdb.DuckDBPyConnection, place: object) -> None:
    """Makes sure that this program knows everything that is in the register in the default schema.

    Args:
        connection: has it as its default database.
        place: where it is, for the error.

    Raises:
        RegisterError: it does not; says what to do.
    """
    layout = layout_of(connection, *_default(connection))
    check_version(version_of(connection, layout), place)
    for table in ALL_TABLES:
        declared = {*table.column_names, *OWN_COLUMNS}
        unknown = [name for name in layout.get(table.name, ()) if name not in declared]
        if unknown:
            raise RegisterError(
                f"{place}: {table.name} has {', '.join(unknown)}, which this kbo_pipeline does not"
                " know; upgrade it, or declare that in its tables.py"
            )


def has_ledger(layout: Layout) -> bool:
    """Tells whether a schema of this layout holds a register."""
    return {"import_jobs", "import_job_batches"} <= layout.keys()


def _migrate(database: Database, version: int) -> None:
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in migration.statements:
            database.execute(statement)
        database.execute(_NOTE_VERSION, version=number, description=migration.description)


def check_version(version: int, place: object) -> None:
    """Makes sure that this program knows a version of the layout; takes the place for the error.

    Raises:
        RegisterError: it does not; says what to do.
    """
    if version > SCHEMA_VERSION:
        raise RegisterError(
            f"{place}: a register of version {version}, and this kbo_pipeline knows"
            f" {SCHEMA_VERSION}; upgrade it"
        )


def version_of(connection: duckdb.DuckDBPyConnection, layout: Layout, schema: str = "") -> int:
    """The version of the register in a schema, or the default one; 0 if it is older than versions.

    Args:
        connection: has it attached.
        layout: of that schema.
        schema: its name, after that of its database; empty for the default schema.
    """
    if VERSION_TABLE not in layout:
        return 0
    table = f"{schema}.{VERSION_TABLE}" if schema else VERSION_TABLE
    ((version,),) = connection.execute(f"SELECT max(version) FROM {table}").fetchall()
    return int(version or 0)


def _default(connection: duckdb.DuckDBPyConnection) -> tuple[str, str]:
    ((database, schema),) = connection.execute(
        "SELECT current_database(), current_schema()"
    ).fetchall()
    return str(database), str(schema)
