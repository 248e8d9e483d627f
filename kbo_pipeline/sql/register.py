"""SQL that defines the register and applies batches to it."""

from kbo_pipeline.batches import Batch
from kbo_pipeline.extracts import ExtractType
from kbo_pipeline.tables import Table

VERSION_COLUMNS = (
    "_snapshot_date DATE NOT NULL",
    "_extract_number INTEGER NOT NULL",
    "_deleted_at_extract INTEGER",
    "_is_current BOOLEAN NOT NULL",
)
"""What each register table has besides the columns of its CSV."""

STATUSES = "('pending', 'processing', 'completed', 'failed', 'cancelled', 'rolled_back')"


def create_register_table(table: Table) -> str:
    """Creates a register table, when it is not there."""
    columns = [
        f"{c.name} {c.type}{' NOT NULL' if c.name == table.key else ''}" for c in table.columns
    ]
    return (
        f"CREATE TABLE IF NOT EXISTS register.main.{table.name}"
        f" ({', '.join((*columns, *VERSION_COLUMNS))})"
    )


CREATE_LEDGER = (
    f"""
CREATE TABLE IF NOT EXISTS register.main.import_jobs (
    id VARCHAR NOT NULL PRIMARY KEY,
    extract_number INTEGER NOT NULL,
    extract_type VARCHAR NOT NULL,
    snapshot_date DATE NOT NULL,
    extract_timestamp TIMESTAMP NOT NULL,
    source_file VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    status VARCHAR NOT NULL CHECK (status IN {STATUSES}),
    total_batches INTEGER NOT NULL,
    names_resolved BIGINT,
    error_message VARCHAR,
    created_at TIMESTAMPTZ NOT NULL,
    started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ
)
""",
    f"""
CREATE TABLE IF NOT EXISTS register.main.import_job_batches (
    job_id VARCHAR NOT NULL,
    table_name VARCHAR NOT NULL,
    batch_number INTEGER NOT NULL,
    operation VARCHAR NOT NULL CHECK (operation IN ('delete', 'insert')),
    status VARCHAR NOT NULL CHECK (status IN {STATUSES}),
    records_count BIGINT NOT NULL,
    attempts INTEGER NOT NULL,
    started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ,
    error_message VARCHAR,
    rows_closed BIGINT NOT NULL DEFAULT 0,
    rows_opened BIGINT NOT NULL DEFAULT 0,
    rows_unchanged BIGINT NOT NULL DEFAULT 0,
    duplicates_dropped BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (job_id, table_name, batch_number, operation)
)
""",
)


def range_parameters(batch: Batch | None) -> dict[str, str]:
    """The bound values of a batch's range, as the statements of this module name them."""
    bounds = {} if batch is None else {"first": batch.first_number, "next": batch.next_number}
    return {name: value for name, value in bounds.items() if value is not None}


def _in_range(column: str, batch: Batch | None) -> str:
    """Only the bounds that exist are written, so that DuckDB's zone maps can skip the rest."""
    parts = []
    if batch is not None and batch.first_number is not None:
        parts.append(f"{column} >= $first")
    if batch is not None and batch.next_number is not None:
        parts.append(f"{column} < $next")
    return " AND ".join(parts) or "true"


def _same_row(table: Table) -> str:
    others = (f"c.{n} IS NOT DISTINCT FROM i.{n}" for n in table.column_names[1:])
    return " AND ".join((f"c.{table.key} = i.{table.key}", *others))


def _incoming(table: Table, batch: Batch | None) -> str:
    """The rows that an extract brings; of two for a unique key, the later in the file."""
    later_wins = (
        f" QUALIFY row_number() OVER (PARTITION BY {table.key} ORDER BY rowid DESC) = 1"
        if table.unique_key
        else ""
    )
    return (
        f"SELECT {', '.join(table.column_names)} FROM staging.staged.{table.name}"
        f" WHERE operation = 'insert' AND {_in_range(table.key, batch)}{later_wins}"
    )


def _replaced(table: Table, extract_type: ExtractType, batch: Batch | None) -> str:
    """Which current rows must be in the extract to go on: of the keys that it speaks for.

    A Full speaks for every key. An Update speaks for the keys that it deletes; where a key has one
    row at most, a new row replaces the old one also without a delete.
    """
    if extract_type == "full":
        return "true"
    operation = "" if table.unique_key else "operation = 'delete' AND "
    return (
        f"c.{table.key} IN (SELECT {table.key} FROM staging.staged.{table.name}"
        f" WHERE {operation}{_in_range(table.key, batch)})"
    )


def opened_rows(table: Table) -> str:
    """Row versions that an extract opened, `$most` at most; binds `$number` too."""
    return f"SELECT * FROM register.main.{table.name} WHERE _extract_number = $number LIMIT $most"


def incoming(table: Table, batch: Batch | None) -> str:
    """The rows that a staged extract brings in the range, each once."""
    return f"SELECT DISTINCT * FROM ({_incoming(table, batch)})"


def held(table: Table, batch: Batch | None) -> str:
    """The rows in the range that hold at an extract, in the published file; binds `$number`."""
    return (
        f"SELECT {', '.join(table.column_names)} FROM published.main.{table.name}"
        f" WHERE {_in_range(table.key, batch)} AND _extract_number <= $number"
        " AND (_deleted_at_extract IS NULL OR _deleted_at_extract > $number)"
    )


def drop_versions(table: Table) -> str:
    """Drops the row versions that an extract opened; binds `$number`."""
    return f"DELETE FROM register.main.{table.name} WHERE _extract_number = $number"


def reopen_versions(table: Table) -> str:
    """Lets the row versions that an extract closed hold again; binds `$number`."""
    return (
        f"UPDATE register.main.{table.name}"
        " SET _deleted_at_extract = NULL, _is_current = true WHERE _deleted_at_extract = $number"
    )


def count_in_range(table: Table, batch: Batch | None) -> str:
    """Counts the staged rows in the range, deletes and inserts."""
    return f"SELECT count(*) FROM staging.staged.{table.name} WHERE {_in_range(table.key, batch)}"


def holds_current_rows(table: Table, batch: Batch | None) -> str:
    """Tells whether the register has any current row in the range."""
    return (
        f"SELECT count(*) > 0 FROM (SELECT 1 FROM register.main.{table.name} c"
        f" WHERE c._is_current AND {_in_range(f'c.{table.key}', batch)} LIMIT 1)"
    )


def close_rows(table: Table, extract_type: ExtractType, batch: Batch | None) -> str:
    """Closes the current rows that the extract removes; binds `$number`."""
    return (
        f"UPDATE register.main.{table.name}"
        " SET _deleted_at_extract = $number, _is_current = false"
        f" WHERE _is_current AND {_in_range(table.key, batch)} AND rowid IN ("
        f"SELECT c.rowid FROM register.main.{table.name} c"
        f" ANTI JOIN ({_incoming(table, batch)}) i ON {_same_row(table)}"
        f" WHERE c._is_current AND {_in_range(f'c.{table.key}', batch)}"
        f" AND {_replaced(table, extract_type, batch)})"
    )


def count_unchanged(table: Table, extract_type: ExtractType, batch: Batch | None) -> str:
    """Counts the current rows that the extract brings again, after those it removes are closed."""
    match = (
        ""
        if extract_type == "full"
        else f" SEMI JOIN ({_incoming(table, batch)}) i ON {_same_row(table)}"
    )
    return (
        f"SELECT count(*) FROM register.main.{table.name} c{match}"
        f" WHERE c._is_current AND {_in_range(f'c.{table.key}', batch)}"
    )


def open_rows(table: Table, batch: Batch | None, *, compare: bool) -> str:
    """Opens a version for each incoming row that is not current; binds `$date`, `$number`.

    Args:
        table: the table.
        batch: the range; None for the whole axis.
        compare: False when the register has no current row in the range.
    """
    known = (
        f" ANTI JOIN (SELECT * FROM register.main.{table.name} WHERE _is_current"
        f" AND {_in_range(table.key, batch)}) c ON {_same_row(table)}"
        if compare
        else ""
    )
    columns = ", ".join(f"i.{name}" for name in table.column_names)
    return (
        f"INSERT INTO register.main.{table.name}"
        f" SELECT DISTINCT {columns}, $date::DATE, $number::INTEGER, NULL::INTEGER, true"
        f" FROM ({_incoming(table, batch)}) i{known} ORDER BY i.{table.key}"
    )
