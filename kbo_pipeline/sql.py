"""From table declarations to SQL text; all SQL on the KBO tables is made here.

Identifiers come from the declarations only; values are bound as `$name` parameters. No connection.
The register is attached as `register`, an extract's staging file as `staging`.
"""

from collections.abc import Collection
from pathlib import Path

from kbo_pipeline.batches import Batch
from kbo_pipeline.extracts import ExtractType, Operation
from kbo_pipeline.tables import ALL_TABLES, CODE, DENOMINATION, ENTERPRISE, TABLES, Table

VERSION_COLUMNS = (
    "_snapshot_date DATE NOT NULL",
    "_extract_number INTEGER NOT NULL",
    "_deleted_at_extract INTEGER",
    "_is_current BOOLEAN NOT NULL",
)
"""What each register table has besides the columns of its CSV."""

STATUSES = "('pending', 'processing', 'completed', 'failed', 'cancelled', 'rolled_back')"

_PRIMARY_NAME_LANGUAGES = (("2", "nl"), ("1", "fr"), ("0", "unknown"), ("3", "de"), ("4", "en"))
"""KBO's language codes in the order in which a primary name is chosen."""

_NAME_COLUMNS = (
    "primary_name",
    "primary_name_language",
    "primary_name_nl",
    "primary_name_fr",
    "primary_name_de",
)


def literal(text: str | Path) -> str:
    """A text as an SQL literal, for the few statements that take no parameters."""
    return "'" + str(text).replace("'", "''") + "'"


def glob_escaped(path: Path) -> str:
    """A path as `read_csv` takes it: the characters that it would expand stand for themselves."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))


# Staging ---------------------------------------------------------------------------------------


def load_staged(table: Table, operations: Collection[Operation]) -> str:
    """Fills `staged.<table>` from the CSV files bound as `$delete` and `$insert`, in file order."""
    selects = [_read_csv(table, operation) for operation in operations]
    columns = ", ".join(f"{c.name} {c.type}" for c in table.columns)
    create = f"CREATE TABLE staged.{table.name}"
    if not selects:
        return f"{create} (operation VARCHAR, {columns})"
    return f"{create} AS {' UNION ALL '.join(selects)}"


def _read_csv(table: Table, operation: Operation) -> str:
    in_file = table.columns[:1] if operation == "delete" else table.columns
    types = ", ".join(f"'{c.name}': '{c.type}'" for c in in_file)
    absent = "".join(f", NULL::{c.type} AS {c.name}" for c in table.columns[len(in_file) :])
    return (
        f"SELECT '{operation}' AS operation, {', '.join(c.name for c in in_file)}{absent}"
        f" FROM read_csv(${operation}, columns = {{{types}}}, auto_detect = false, header = true,"
        " delim = ',', quote = '\"', escape = '\"', nullstr = '', allow_quoted_nulls = true,"
        " dateformat = '%d-%m-%Y', strict_mode = true, null_padding = false,"
        " ignore_errors = false, encoding = 'utf-8')"
    )


def staged_records(table: Table, operation: Operation) -> str:
    """Counts the rows that were staged, and those without a key."""
    return (
        f"SELECT count(*), count(*) - count({table.key}) FROM staged.{table.name}"
        f" WHERE operation = '{operation}'"
    )


def staged_line_breaks(table: Table, operation: Operation) -> str:
    """Counts the line feeds inside the values that were staged."""
    texts = [c.name for c in table.columns if c.type == "VARCHAR"]
    feeds = " + ".join(
        f"coalesce(length({c}) - length(replace({c}, chr(10), '')), 0)" for c in texts
    )
    return (
        f"SELECT coalesce(sum({feeds}), 0)::BIGINT FROM staged.{table.name}"
        f" WHERE operation = '{operation}'"
    )


def count_by_entity() -> str:
    """Makes `records_of_entity`: how many rows of an extract speak of each entity number."""
    counts = " UNION ALL ".join(
        f"SELECT '{t.name}' AS table_name, operation, {t.key} AS entity_number,"
        f" count(*) AS records_count FROM staged.{t.name} GROUP BY ALL"
        for t in TABLES
    )
    return f"CREATE TEMP TABLE records_of_entity AS {counts}"


COUNT_ALONG_AXIS = """
CREATE TEMP TABLE axis AS
SELECT entity_number, sum(sum(records_count)) OVER (ORDER BY entity_number)::BIGINT AS records_until
FROM records_of_entity GROUP BY entity_number ORDER BY entity_number
"""

AXIS_TOTAL = "SELECT coalesce(max(records_until), 0) FROM axis"

NEXT_CUT = "SELECT min(records_until) FROM axis WHERE records_until >= $reached + $target"

FIRST_AFTER_CUT = "SELECT min(entity_number) FROM axis WHERE records_until > $reached"

CREATE_BATCH = """
CREATE TABLE batch (
    batch_number INTEGER NOT NULL, first_number VARCHAR, next_number VARCHAR
)
"""

COUNT_BY_BATCH = """
CREATE TABLE batch_records AS
SELECT table_name, batch_number, operation, sum(records_count)::BIGINT AS records_count
FROM records_of_entity
ASOF JOIN batch ON entity_number >= coalesce(first_number, '')
GROUP BY ALL
"""

CREATE_EXTRACT = """
CREATE TABLE extract (
    extract_key VARCHAR, extract_number INTEGER, extract_type VARCHAR, snapshot_date DATE,
    extract_timestamp TIMESTAMP, version VARCHAR, source_file VARCHAR, sha256 VARCHAR
)
"""


def staging_view(table: Table) -> str:
    """Makes `import_staging_<table>`, which shows each staged row with its batch.

    The batch is found by the row's place on the axis and the sequence is the row's place in the
    file: stored as columns, both would double the time of loading.
    """
    columns = ", ".join(f"s.{name}" for name in table.column_names)
    if table is CODE:
        batch, join = "NULL::INTEGER", ""
    else:
        batch = "b.batch_number"
        join = f" ASOF JOIN main.batch b ON s.{table.key} >= coalesce(b.first_number, '')"
    return (
        f"CREATE VIEW import_staging_{table.name} AS SELECT {batch} AS batch_number,"
        f" s.operation, s.row_sequence, {columns}"
        f" FROM (SELECT rowid AS row_sequence, * FROM staged.{table.name}) s{join}"
    )


# Register --------------------------------------------------------------------------------------


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


# What readers see ------------------------------------------------------------------------------


def _holds_at(alias: str) -> str:
    return (
        f"{alias}._extract_number <= extract_number AND"
        f" ({alias}._deleted_at_extract IS NULL OR {alias}._deleted_at_extract > extract_number)"
    )


def _state(table: Table, holds: str, names_hold: str) -> str:
    """The rows of a table for which a condition holds; of entities, with their primary names."""
    columns = ", ".join(f"s.{name}" for name in table.column_names)
    if table is not ENTERPRISE:
        return f"SELECT {columns} FROM main.{table.name} s WHERE {holds}"
    return (
        f"SELECT {columns}, {', '.join(_primary_name(table.key))}"
        f" FROM main.{table.name} s LEFT JOIN ({_names(names_hold)}) n"
        f" ON n.{DENOMINATION.key} = s.{table.key} WHERE {holds}"
    )


def _names(holds: str) -> str:
    names = ", ".join(
        f"min(d.denomination) FILTER (d.language = '{code}') AS name_{name}"
        for code, name in _PRIMARY_NAME_LANGUAGES
    )
    return (
        f"SELECT d.{DENOMINATION.key}, {names} FROM main.{DENOMINATION.name} d"
        f" WHERE d.type_of_denomination = '001' AND {holds} GROUP BY d.{DENOMINATION.key}"
    )


def _primary_name(key: str) -> tuple[str, ...]:
    """The rule: the first language that has a name of type 001; else the entity's number."""
    in_order = [f"n.name_{name}" for _, name in _PRIMARY_NAME_LANGUAGES]
    languages = " ".join(
        f"WHEN n.name_{name} IS NOT NULL THEN '{code}'" for code, name in _PRIMARY_NAME_LANGUAGES
    )
    expressions = (
        f"coalesce({', '.join(in_order)}, s.{key})",
        f"CASE {languages} END",
        "n.name_nl",
        "n.name_fr",
        "n.name_de",
    )
    return tuple(f"{e} AS {c}" for e, c in zip(expressions, _NAME_COLUMNS, strict=True))


def views(table: Table) -> tuple[str, ...]:
    """Creates `current.<table>`, `<table>_at(n)` and `<table>_changes(n)` in the register.

    The register must be the default database then: the texts name no database, because readers
    open the published file under a name of their own.
    """
    columns = ", ".join(table.column_names)
    return (
        f'CREATE OR REPLACE VIEW "current".{table.name} AS '
        + _state(table, "s._is_current", "d._is_current"),
        f"CREATE OR REPLACE MACRO {table.name}_at(extract_number) AS TABLE "
        + _state(table, _holds_at("s"), _holds_at("d")),
        f"CREATE OR REPLACE MACRO {table.name}_changes(extract_number) AS TABLE"
        f" SELECT 'removed' AS _change, {columns} FROM main.{table.name} s"
        " WHERE s._deleted_at_extract = extract_number"
        f" UNION ALL SELECT 'added' AS _change, {columns} FROM main.{table.name} s"
        " WHERE s._extract_number = extract_number",
    )


COUNT_NAMES_RESOLVED = f"""
SELECT count(*) FROM register.main.{ENTERPRISE.name} e
WHERE e._is_current AND (e._extract_number = $number OR e.{ENTERPRISE.key} IN (
    SELECT {DENOMINATION.key} FROM register.main.{DENOMINATION.name}
    WHERE type_of_denomination = '001' AND $number IN (_extract_number, _deleted_at_extract)))
"""
"""Counts the current entities whose primary name was resolved anew for an extract."""

CONTENT_OF_TABLES = " UNION ALL ".join(
    f"SELECT '{t.name}' AS table_name, count(*) AS row_count, sum(hash(t))::VARCHAR AS row_hash"
    f" FROM main.{t.name} t"
    for t in ALL_TABLES
)
"""Counts and hashes all row versions of each table, whatever their order in the file."""
