"""SQL of a register in which writers and readers work in one database.

The register at work is the schema `work`. In `main` are views of the same names, which show the
published extracts alone, as if nothing else were there. A reader never waits, and sees extract N or
N+1: publishing is the commit that turns a row of the ledger to `completed`.
"""

from collections.abc import Iterator

from kbo_pipeline.apply.sql import held as held_in_file
from kbo_pipeline.apply.sql import in_range, row_hash
from kbo_pipeline.core.extracts import Batch
from kbo_pipeline.core.places import WORK
from kbo_pipeline.core.sql import listed
from kbo_pipeline.core.tables import ALL_TABLES, Table

_LOCKS_BEFORE = ("import_turn", *(f"import_turn_{turn:02d}" for turn in range(15)))
"""What earlier versions had besides the write lock: one table, then fifteen more."""

_WRITE_LOCK = "import_turn_15"
"""A table of one row that each transaction of a writer changes: of two at a time one commits.

Without that, two of them could append rows of one key: there are no unique keys. It has its name
from a version that had sixteen: a writer of that version takes the register for its own, misses the
others, and stops.
"""

TAKE_WRITE_LOCK = f"UPDATE {_WRITE_LOCK} SET number = number + 1"

CLOSING = "closing"
"""What batches of the extract at work close, noted until its publication does it.

A batch only appends. By key and hash of the row, because DuckLake and MotherDuck write rows anew
when they compact them; a key has no row twice.
"""

PREPARE = (
    f"""CREATE TABLE IF NOT EXISTS {CLOSING} (
    table_name VARCHAR NOT NULL, key VARCHAR NOT NULL, row_hash UBIGINT NOT NULL
)""",
    f"CREATE TABLE IF NOT EXISTS {_WRITE_LOCK} (number BIGINT NOT NULL)",
    f"INSERT INTO {_WRITE_LOCK} SELECT 0 WHERE NOT EXISTS (FROM {_WRITE_LOCK})",
    *(f"DROP TABLE IF EXISTS {table}" for table in _LOCKS_BEFORE),
)
"""Makes what only a shared register has, also in one of an earlier version of this package."""

IS_PREPARED = f"""
SELECT list(table_name) = ['{_WRITE_LOCK}']
FROM duckdb_tables()
WHERE database_name = current_database() AND schema_name = '{WORK}'
    AND starts_with(table_name, 'import_turn')
"""
"""Whether a register has what `PREPARE` makes; NULL where there is nothing of that."""


def held(table: Table) -> str:
    """The current rows of a table, but for those that are noted to be closed."""
    return f"""{held_in_file(table)}
    AND NOT EXISTS (
        SELECT 1
        FROM {CLOSING} o
        WHERE o.table_name = '{table.name}' AND o.key = {table.name}.{table.key}
            AND o.row_hash = {row_hash(table, table.name)}
    )"""


def note_closing(table: Table, batch: Batch | None) -> str:
    """Notes what `find_changes` found in a range to be closed."""
    return f"""INSERT INTO {CLOSING}
SELECT '{table.name}', key, row_hash
FROM temp.main.closing_{table.name}
WHERE {in_range("key", batch)}"""


def close_noted(table: Table) -> str:
    """Closes what is noted; binds `$number`."""
    return f"""UPDATE {table.name} c
SET _deleted_at_extract = $number, _is_current = false
FROM (SELECT key, row_hash FROM {CLOSING} WHERE table_name = '{table.name}') o
WHERE c.{table.key} = o.key AND c._is_current AND c._extract_number < $number
    AND {row_hash(table, "c")} = o.row_hash"""


COUNT_NOTED = f"SELECT table_name, count(*) FROM {CLOSING} GROUP BY ALL"

FORGET_NOTED = f"DELETE FROM {CLOSING}"

_NEWEST = f"SELECT max(j.extract_number) FROM {WORK}.import_jobs j WHERE j.status = 'completed'"
"""The newest published extract; `j.` because a macro's parameter has that name too."""

_SHOWN = "('completed', 'rolled_back')"


def published_views() -> Iterator[str]:
    """Creates the views in `main`, in place of those that are there."""
    for table in ALL_TABLES:
        yield _published(table)
    yield f"""CREATE OR REPLACE VIEW main.import_jobs AS
SELECT j.*
FROM {WORK}.import_jobs j
WHERE j.status IN {_SHOWN}"""
    yield f"""CREATE OR REPLACE VIEW main.rejected_row AS
SELECT r.*
FROM {WORK}.rejected_row r
SEMI JOIN {WORK}.import_jobs j ON j.id = r.extract AND j.status = 'completed'"""
    yield f"""CREATE OR REPLACE VIEW main.import_job_batches AS
SELECT b.*
FROM {WORK}.import_job_batches b
SEMI JOIN {WORK}.import_jobs j ON j.id = b.job_id AND j.status IN {_SHOWN}"""


def _published(table: Table) -> str:
    columns = listed((*table.column_names, "_snapshot_date", "_extract_number"))
    closed = f"_deleted_at_extract <= (\n        {_NEWEST}\n    )"
    return f"""CREATE OR REPLACE VIEW main.{table.name} AS
SELECT {columns},
    CASE WHEN {closed} THEN _deleted_at_extract END AS _deleted_at_extract,
    ({closed}) IS NOT TRUE AS _is_current
FROM {WORK}.{table.name}
WHERE _extract_number <= (
    {_NEWEST}
)"""
