"""SQL that defines the register and applies batches to it.

The register is the default database of the connection: what is its own is named without it.

Where writers and readers work in one database, the register at work is the schema `work`. In `main`
are views of the same names, which show the published extracts alone, as if nothing else were there.
A reader never waits, and sees extract N or N+1: publishing is the commit that turns a row of the
ledger to `completed`.
"""

from collections.abc import Iterable, Iterator

from kbo_pipeline.core.extracts import Batch, ExtractType
from kbo_pipeline.core.places import WORK
from kbo_pipeline.core.sql import indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import ALL_TABLES, TABLES, Table
from kbo_pipeline.stage.sql import of_operation

_BLOCK_LENGTH = 7
"""Characters by which keys are compared together: `0123.45` stands for some 25 enterprises."""


def range_parameters(batch: Batch | None) -> dict[str, str]:
    """The bound values of a batch's range, as the statements of this module name them."""
    bounds = {} if batch is None else {"first": batch.first_number, "next": batch.next_number}
    return {name: value for name, value in bounds.items() if value is not None}


def in_range(column: str, batch: Batch | None) -> str:
    """Whether a number is in a batch's range, bound by `range_parameters`; always without one.

    Only the bounds that exist are written, so that DuckDB's zone maps can skip the rest.
    """
    conditions = {"first": f"{column} >= $first", "next": f"{column} < $next"}
    return " AND ".join(conditions[bound] for bound in range_parameters(batch)) or "true"


def _same_row(table: Table) -> str:
    others = (f"c.{n} IS NOT DISTINCT FROM i.{n}" for n in table.column_names[1:])
    return "\n    AND ".join((f"c.{table.key} = i.{table.key}", *others))


def row_hash(table: Table, alias: str) -> str:
    """The hash of the values of a row; of two that differ it is the same once in 2^64."""
    values = listed((f"{alias}.{name}" for name in table.column_names), by=8)
    return f"hash({values})"


def incoming(table: Table, extract_type: ExtractType) -> str:
    """The rows that an extract brings, each once; of two for a unique key, the later in the file.

    The code table is whole in every extract.
    """
    return f"""SELECT {listed(table.column_names)}
FROM staging.main.{table.name}
WHERE {of_operation(extract_type, "insert")}
    AND rowid NOT IN (
        SELECT row_id FROM staging.superseded WHERE table_name = '{table.name}'
    )"""


def current_rows(table: Table) -> str:
    """The current rows of a table, each with its rowid as `row_id`; ends in its condition."""
    return f"""SELECT {listed(("rowid AS row_id", *table.column_names))}
FROM {table.name}
WHERE _is_current"""


def find_keys(
    table: Table,
    extract_type: ExtractType,
    current: str,
    *,
    is_whole: bool,
) -> str:
    """Makes `keys_of_<table>`: the keys whose rows an extract may change.

    An Update may change those that it names. What is whole may change every key: those are taken
    whose number of rows, or sum of hashes, is not that of the register. Two rows that differ have
    the same hash of 64 bits in one case of 2^64.

    Args:
        table: the table.
        extract_type: what the extract is.
        current: the query for what the register holds: `current_rows` or `unnoted_rows`.
        is_whole: the extract holds all rows of the table.
    """
    create = f"CREATE OR REPLACE TEMP TABLE keys_of_{table.name} AS"
    if not is_whole:
        staged = f"staging.main.{table.name}"
        return f"{create}\nSELECT DISTINCT {table.key} AS key\nFROM {staged}"
    return f"{create}\n{differing_keys(table, incoming(table, extract_type), current)}"


def differing_keys(table: Table, new: str, old: str) -> str:
    """The keys whose rows in two queries on a table differ, by their number and their hashes.

    Keys that begin alike are compared together first: there are fewer groups then, and as a rule
    next to none differs.
    """
    block = f"left({table.key}, {_BLOCK_LENGTH})"
    keys = (
        f"""SELECT *
FROM (
    {indented(query)}
)
WHERE {block} IN (SELECT key FROM blocks)"""
        for query in (new, old)
    )
    blocks = {"blocks": _differing(table, block, new, old)}
    return with_queries(blocks, _differing(table, table.key, *keys), materialized=True)


def _differing(table: Table, key: str, new: str, old: str) -> str:
    """The values of an expression of which the rows in two queries on a table differ."""
    new, old = (
        f"""SELECT {key} AS key, count(*) AS rows_of_key,
    sum(hash({listed(table.column_names, by=8)})) AS row_hash
FROM (
    {indented(query)}
)
GROUP BY ALL"""
        for query in (new, old)
    )
    return f"""SELECT coalesce(n.key, o.key) AS key
FROM (
    {indented(new)}
) n
FULL JOIN (
    {indented(old)}
) o ON n.key = o.key
WHERE n.rows_of_key IS DISTINCT FROM o.rows_of_key OR n.row_hash IS DISTINCT FROM o.row_hash"""


def no_keys(table: Table) -> str:
    """Makes `keys_of_<table>` when the register is known to be what the extract says."""
    return f"CREATE OR REPLACE TEMP TABLE keys_of_{table.name} (key VARCHAR)"


def find_changes(
    table: Table,
    extract_type: ExtractType,
    current: str,
    *,
    is_whole: bool,
) -> tuple[str, ...]:
    """Makes `to_close_<table>` and `to_open_<table>` from `keys_of_<table>`.

    `to_close_<table>` has the key, the rowid and the hash of each current row that the extract
    removes; `to_open_<table>` has the rows that it adds. An Update removes rows of the keys that it
    deletes; where a key has one row at most, a new row replaces the old one also without a delete.
    Takes what `find_keys` takes.
    """
    name, key = table.name, table.key
    of_keys = f"{key} IN (SELECT key FROM temp.main.keys_of_{name})"
    removed = "true"
    if not (is_whole or table.unique_key):
        deleted = f"SELECT {key} FROM staging.main.{name} WHERE operation = 'delete'"
        removed = f"c.{key} IN ({deleted})"
    return (
        f"CREATE OR REPLACE TEMP TABLE old_{name} AS\n{current}\n    AND {of_keys}",
        f"""CREATE OR REPLACE TEMP TABLE new_{name} AS
{incoming(table, extract_type)}
    AND {of_keys}""",
        f"""CREATE OR REPLACE TEMP TABLE to_close_{name} AS
SELECT c.{key} AS key, c.row_id,
    {row_hash(table, "c")} AS row_hash
FROM temp.main.old_{name} c
ANTI JOIN temp.main.new_{name} i
    ON {_same_row(table)}
WHERE {removed}""",
        f"""CREATE OR REPLACE TEMP TABLE to_open_{name} AS
SELECT i.*
FROM temp.main.new_{name} i
ANTI JOIN temp.main.old_{name} c
    ON {_same_row(table)}""",
        f"DROP TABLE temp.main.old_{name}",
        f"DROP TABLE temp.main.new_{name}",
        f"DROP TABLE temp.main.keys_of_{name}",
    )


def opened_rows(table: Table) -> str:
    """Row versions that an extract opened, `$most` at most; binds `$number` too."""
    return f"SELECT * FROM {table.name} WHERE _extract_number = $number LIMIT $most"


def drop_versions(table: Table) -> str:
    """Drops the row versions that an extract opened; binds `$number`."""
    return f"DELETE FROM {table.name} WHERE _extract_number = $number"


def reopen_versions(table: Table) -> str:
    """Reopens the row versions that an extract closed; binds `$number`."""
    return f"""UPDATE {table.name}
SET _deleted_at_extract = NULL, _is_current = true
WHERE _deleted_at_extract = $number"""


def count_changes(table: Table) -> str:
    """Counts what is to be closed and to be opened."""
    return f"""SELECT
    (SELECT count(*) FROM temp.main.to_close_{table.name}),
    (SELECT count(*) FROM temp.main.to_open_{table.name})"""


def _by_batch(counted: Iterable[str]) -> str:
    """Sums up columns of numbers by `table_name` and batch, which `entity_number` is in."""
    return f"""SELECT table_name, batch_number,
    sum(COLUMNS(* EXCLUDE (
        table_name, batch_number, entity_number, first_number, next_number)))::BIGINT
FROM (
    {indented(union_all(counted))}
)
ASOF JOIN staging.main.batch ON entity_number >= coalesce(first_number, '')
GROUP BY ALL"""


COUNT_STAGED_BY_BATCH = _by_batch(
    f"""SELECT '{table.name}' AS table_name, {table.key} AS entity_number, 1 AS staged
FROM staging.main.{table.name}"""
    for table in TABLES
)
"""Counts the staged rows, deletes and inserts, by table and batch."""

COUNT_CHANGES_BY_BATCH = _by_batch(
    f"""SELECT '{table.name}' AS table_name, key AS entity_number, 1 AS to_close, 0 AS to_open
FROM temp.main.to_close_{table.name}
UNION ALL
SELECT '{table.name}', {table.key}, 0, 1
FROM temp.main.to_open_{table.name}"""
    for table in TABLES
)
"""Counts what is to be closed and to be opened, by table and batch."""

COUNT_OPENED_BY_BATCH = _by_batch(
    f"""SELECT '{table.name}' AS table_name, {table.key} AS entity_number, 1 AS opened
FROM {table.name}
WHERE _extract_number = $number AND _is_current"""
    for table in TABLES
)
"""Counts the current rows that the extract has opened, by table and batch; binds `$number`."""


def close_rows(table: Table, batch: Batch | None) -> str:
    """Closes in the range what `find_changes` found; binds `$number`.

    Rows keep their rowid until a checkpoint takes deleted ones away; the hash makes sure of it. It
    is written so that DuckDB does not join by it: it would hash all rows of the range.
    """
    return f"""UPDATE {table.name} c
SET _deleted_at_extract = $number, _is_current = false
FROM (
    SELECT *
    FROM temp.main.to_close_{table.name}
    WHERE {in_range("key", batch)}
) o
WHERE c.rowid = o.row_id AND c._is_current
    AND {in_range(f"c.{table.key}", batch)}
    AND xor({row_hash(table, "c")}, o.row_hash) = 0"""


def open_rows(table: Table, batch: Batch | None) -> str:
    """Opens in the range a version of each row found by `find_changes`; binds `$date`, `$number`.

    In the order of their keys, so that DuckDB's zone maps can skip what is not asked for.
    """
    return f"""INSERT INTO {table.name} BY NAME
SELECT *, $date::DATE AS _snapshot_date,
    $number::INTEGER AS _extract_number, true AS _is_current
FROM temp.main.to_open_{table.name}
WHERE {in_range(table.key, batch)}
ORDER BY {table.key}"""


FORGET_REJECTED = "DELETE FROM rejected_row WHERE extract = $key"

FORGET_PROOF = "DELETE FROM proof WHERE extract_number = $number"

FORGET_CORRECTIONS = "DELETE FROM correction WHERE extract_number = $number"

KEEP_PROOF = """
INSERT INTO proof BY NAME
SELECT $number AS extract_number, $verified_at::TIMESTAMPTZ AS verified_at, $is_equal AS is_equal,
    $rows_compared AS rows_compared, $rows_differing AS rows_differing,
    $full_sha256 AS full_sha256, $content_hash AS content_hash
"""

KEEP_REJECTED = (
    "INSERT INTO rejected_row BY NAME FROM staging.main.rejected_row WHERE extract = $key"
)
"""Keeps the records of an extract that were set aside when it was staged; binds `$key`."""

COUNT_SUPERSEDED = "SELECT count(*) FROM staging.main.superseded WHERE table_name = $table"

NOT_OF_THE_REGISTER = (
    *(f"DROP VIEW import_staging_{table.name}" for table in ALL_TABLES),
    *(
        f"DROP TABLE {name}"
        for name in ("superseded", "batch", "batch_records", "extract", "member")
    ),
    "DELETE FROM rejected_row",
)
"""Drops from the copy of a staged Full what a register does not have."""


def drop_superseded(table: Table) -> str:
    """Drops from the copy of a staged Full the rows that say nothing new."""
    return f"""DELETE FROM {table.name}
WHERE rowid IN (SELECT row_id FROM superseded WHERE table_name = '{table.name}')"""


def require_values(table: Table) -> list[str]:
    """Makes the copy of a staged Full refuse NULL where the register does."""
    names = (table.key, "_snapshot_date", "_extract_number", "_is_current")
    return [f"ALTER TABLE {table.name} ALTER {name} SET NOT NULL" for name in names]


_LOCKS_BEFORE = ("import_turn", *(f"import_turn_{turn:02d}" for turn in range(15)))
"""What earlier versions had besides the write lock: one table, then fifteen more."""

_WRITE_LOCK = "import_turn_15"
"""A table of one row that each transaction of a writer changes: of two at a time one commits.

Without that, two of them could append rows of one key: there are no unique keys. It has its name
from a version that had sixteen: a writer of that version takes the register for its own, misses the
others, and stops.
"""

TAKE_WRITE_LOCK = f"UPDATE {_WRITE_LOCK} SET number = number + 1"

_NOTED = "closing"
"""The table of what batches of the extract at work close, noted until its publication does it.

A batch only appends. By key and hash of the row, because DuckLake and MotherDuck rewrite rows
when they compact them; a key has no row twice.
"""

PREPARE = (
    f"""CREATE TABLE IF NOT EXISTS {_NOTED} (
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
"""Whether a register has what `PREPARE` makes; NULL where there is nothing of it."""


def unnoted_rows(table: Table) -> str:
    """`current_rows`, but for those of a shared register that are noted to be closed."""
    return f"""{current_rows(table)}
    AND NOT EXISTS (
        SELECT 1
        FROM {_NOTED} o
        WHERE o.table_name = '{table.name}' AND o.key = {table.name}.{table.key}
            AND o.row_hash = {row_hash(table, table.name)}
    )"""


def note_rows_to_close(table: Table, batch: Batch | None) -> str:
    """Notes what `find_changes` found in a range to be closed."""
    return f"""INSERT INTO {_NOTED}
SELECT '{table.name}', key, row_hash
FROM temp.main.to_close_{table.name}
WHERE {in_range("key", batch)}"""


def close_noted(table: Table) -> str:
    """Closes what is noted; binds `$number`."""
    return f"""UPDATE {table.name} c
SET _deleted_at_extract = $number, _is_current = false
FROM (SELECT key, row_hash FROM {_NOTED} WHERE table_name = '{table.name}') o
WHERE c.{table.key} = o.key AND c._is_current AND c._extract_number < $number
    AND {row_hash(table, "c")} = o.row_hash"""


COUNT_NOTED = f"SELECT table_name, count(*) FROM {_NOTED} GROUP BY ALL"
FORGET_NOTED = f"DELETE FROM {_NOTED}"

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
    yield f"CREATE OR REPLACE VIEW main.proof AS\nSELECT *\nFROM {WORK}.proof"
    yield f"""CREATE OR REPLACE VIEW main.correction AS
SELECT c.*
FROM {WORK}.correction c
WHERE c.extract_number <= (
    {_NEWEST}
)"""
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
