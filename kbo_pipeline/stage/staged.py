"""The staging file of an extract: opening it, what it says of itself, removing it."""

import datetime
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import duckdb

from kbo_pipeline.core.database import is_damage
from kbo_pipeline.core.errors import DamagedError, ExtractError, NotReadyError, RegisterError
from kbo_pipeline.core.extracts import Batch, BatchKey, Extract, ExtractKey, ExtractType
from kbo_pipeline.core.files import is_locked
from kbo_pipeline.core.schema import OWN_COLUMNS, SCHEMA_VERSION, layout_of
from kbo_pipeline.core.sql import literal, union_all
from kbo_pipeline.core.tables import ALL_TABLES, TABLES, Table
from kbo_pipeline.core.text import first_line
from kbo_pipeline.stage import sql as staging_sql


@dataclass(frozen=True, slots=True)
class Staged:
    """An extract that lies in its staging file, ready to be applied.

    Attributes:
        extract: the extract.
        batches: its batches, in number order; their ranges cover the whole axis.
        records: rows by (table name, batch number, operation); absent where there are none.
        superseded: of those, by (table name, batch number), the inserted ones that say nothing
            new: exact duplicates, and of two rows for a unique key the earlier; absent where none.
        rejected_rows: records of the ZIP that are set aside, and not among the others.
        warnings: what was odd in the ZIP; known to who staged it only.
    """

    extract: Extract
    batches: tuple[Batch, ...]
    records: Mapping[tuple[str, int, str], int]
    superseded: Mapping[tuple[str, int], int]
    rejected_rows: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def batch_keys(self) -> list[str]:
        """The keys of its batches, in number order."""
        return [str(BatchKey(self.extract.key, batch.number)) for batch in self.batches]

    def table_records(self, table: Table) -> int:
        """Rows of one of the seven tables, deletes and inserts."""
        return sum(count for (name, _, _), count in self.records.items() if name == table.name)


def staging_file(directory: Path, key: ExtractKey) -> Path:
    """Where the staging file of an extract is."""
    return directory / f"{key}.duckdb"


@contextmanager
def open_staged(
    connection: duckdb.DuckDBPyConnection, directory: Path, key: ExtractKey
) -> Iterator[Staged]:
    """Attaches the staging file of an extract as `staging`, for reading.

    Raises:
        NotReadyError: there is none.
        DamagedError: it is not what was staged.
    """
    file, again = staging_file(directory, key), f"kbo retry {key} stages it again"
    if not file.is_file():
        raise NotReadyError(f"{key}: not staged; materialize import_staging_* of {key} first")
    try:
        connection.execute(f"ATTACH {literal(file)} AS staging (READ_ONLY)")
    except duckdb.Error as error:
        if not is_damage(error):
            raise
        raise DamagedError(f"{file}: damaged ({first_line(error)}); {again}") from None
    try:
        if not _is_of_today(connection):
            raise DamagedError(f"{file}: staged by another version; {again}")
        staged = read_staged(connection)
        if staged.extract.key != key:
            raise RegisterError(f"{file}: holds {staged.extract.key}; {again}")
        yield staged
    finally:
        connection.execute("DETACH staging")


def is_staged(directory: Path, key: ExtractKey) -> bool:
    """Tells whether the staging file of an extract is there, sound as far as opening it shows."""
    try:
        with duckdb.connect(":memory:") as connection, open_staged(connection, directory, key):
            return True
    except (NotReadyError, RegisterError):
        return False


def has_all_rows(connection: duckdb.DuckDBPyConnection, staged: Staged) -> bool:
    """Tells whether as many rows as were staged are in an open staging file."""
    counts = union_all(staging_sql.count_staged(table) for table in TABLES)
    there = dict(connection.execute(counts).fetchall())
    return all(there[table.name] == staged.table_records(table) for table in TABLES)


def is_staged_whole(directory: Path, key: ExtractKey) -> bool:
    """Tells whether the staging file of an extract is there, and no row of it is missing."""
    try:
        with (
            duckdb.connect(":memory:") as connection,
            open_staged(connection, directory, key) as staged,
        ):
            return has_all_rows(connection, staged)
    except (NotReadyError, RegisterError):
        return False


def discard_staged(directory: Path, newest: int) -> None:
    """Removes what staging left of extracts that readers have, or that a Full has overtaken.

    What a process is staging now stays.

    Args:
        directory: where staging files are.
        newest: number of the newest published extract.
    """
    by_key: dict[ExtractKey, list[Path]] = {}
    for path in directory.glob("*"):
        try:
            key = ExtractKey.parse(path.name.split(".", 1)[0])
        except ExtractError:
            continue
        by_key.setdefault(key, []).append(path)
    for key, paths in by_key.items():
        lock = directory / f"{key}.lock"
        if key.number > newest or is_locked(lock):
            continue
        for path in (*paths, lock):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _is_of_today(connection: duckdb.DuckDBPyConnection) -> bool:
    """Tells whether the attached staging file has the layout that this program gives one."""
    layout = layout_of(connection, "staging", "main")
    if "schema_version" not in layout.get("extract", ()):
        return False
    row = connection.execute(staging_sql.READ_VERSION).fetchone()
    return row == (SCHEMA_VERSION,) and all(
        layout.get(table.name, {}).keys() - OWN_COLUMNS - {"operation"} == {*table.column_names}
        for table in ALL_TABLES
    )


def read_staged(connection: duckdb.DuckDBPyConnection, warnings: Sequence[str] = ()) -> Staged:
    """Reads what the attached staging file says of itself; the warnings are put with it."""
    row = connection.execute(staging_sql.READ_EXTRACT).fetchone()
    if row is None:
        raise RegisterError("the staging file does not say which extract it holds; stage it again")
    number, kind, snapshot_date, timestamp, version, source_file, sha256 = row
    extract = Extract(
        ExtractKey(number, cast(ExtractType, kind)),
        cast(datetime.date, snapshot_date),
        cast(datetime.datetime, timestamp),
        version,
        source_file,
        sha256,
    )
    batches = connection.execute("FROM staging.batch ORDER BY batch_number").fetchall()
    counted = connection.execute(
        """
        SELECT table_name, batch_number, operation, records_count, superseded_count
        FROM staging.batch_records
        """
    ).fetchall()
    ((rejected_rows,),) = connection.execute("SELECT count(*) FROM staging.rejected_row").fetchall()
    return Staged(
        extract,
        tuple(Batch(*batch) for batch in batches),
        {(name, batch, operation): records for name, batch, operation, records, _ in counted},
        {(name, batch): superseded for name, batch, _, _, superseded in counted if superseded},
        rejected_rows,
        tuple(warnings),
    )
