"""SQL of a register in which writers and readers work in one database.

The register at work is the schema `work`. In `main` are views of the same names, which show the
published extracts alone, as if nothing else were there. A reader never waits, and sees extract N or
N+1: publishing is the commit that turns a row of the ledger to `completed`.
"""

from collections.abc import Iterator

from kbo_pipeline.tables import ALL_TABLES, Table

WORK = "work"
"""The schema of the register at work."""

TURN = "import_turn"
"""One row, changed by every transaction of a writer: of two at a time, one commits.

Without it two of them could append rows of one key: there are no unique keys.
"""

TAKE_TURN = f"UPDATE {TURN} SET number = number + 1"

CREATE_TURN = (
    f"CREATE TABLE IF NOT EXISTS {TURN} (number BIGINT NOT NULL)",
    f"INSERT INTO {TURN} SELECT 0 WHERE NOT EXISTS (FROM {TURN})",
)

IS_PREPARED = (
    "SELECT 1 FROM duckdb_tables() WHERE database_name = current_database()"
    f" AND schema_name = '{WORK}' AND table_name = '{TURN}'"
)

_NEWEST = f"(SELECT max(j.extract_number) FROM {WORK}.import_jobs j WHERE j.status = 'completed')"
"""The newest published extract; `j.` because a macro's parameter has that name too."""

_SHOWN = "('completed', 'rolled_back')"


def published_views() -> Iterator[str]:
    """Creates the views in `main`, in place of those that are there."""
    for table in ALL_TABLES:
        yield _published(table)
    yield (
        "CREATE OR REPLACE VIEW main.import_jobs AS"
        f" SELECT j.* FROM {WORK}.import_jobs j WHERE j.status IN {_SHOWN}"
    )
    yield (
        "CREATE OR REPLACE VIEW main.import_job_batches AS"
        f" SELECT b.* FROM {WORK}.import_job_batches b SEMI JOIN {WORK}.import_jobs j"
        f" ON j.id = b.job_id AND j.status IN {_SHOWN}"
    )


def _published(table: Table) -> str:
    columns = ", ".join((*table.column_names, "_snapshot_date", "_extract_number"))
    closed = f"_deleted_at_extract <= {_NEWEST}"
    return (
        f"CREATE OR REPLACE VIEW main.{table.name} AS SELECT {columns},"
        f" CASE WHEN {closed} THEN _deleted_at_extract END AS _deleted_at_extract,"
        f" ({closed}) IS NOT TRUE AS _is_current"
        f" FROM {WORK}.{table.name} WHERE _extract_number <= {_NEWEST}"
    )
