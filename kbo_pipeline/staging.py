"""Stage: from a ZIP to the extract's own DuckDB file, typed and cut into batches. No Dagster."""

import datetime
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import duckdb

from kbo_pipeline.batches import Batch, BatchKey, batch_target
from kbo_pipeline.errors import DamagedError, ExtractError, NotReadyError, RegisterError
from kbo_pipeline.extracts import (
    CsvFile,
    Extract,
    ExtractKey,
    ExtractType,
    Operation,
    missing_tables,
    unpack,
)
from kbo_pipeline.files import replace_atomically
from kbo_pipeline.locks import exclusive_lock, is_locked
from kbo_pipeline.sql import glob_escaped, literal
from kbo_pipeline.sql import staging as staging_sql
from kbo_pipeline.tables import ALL_TABLES, Table


@dataclass(frozen=True, slots=True)
class Staged:
    """An extract that lies in its staging file, ready to be applied.

    Attributes:
        extract: what it is.
        batches: its batches, in number order; their ranges cover the whole axis.
        records: rows by (table name, batch number, operation); absent where there are none.
        missing: names of tables that the extract brought no file for.
    """

    extract: Extract
    batches: tuple[Batch, ...]
    records: Mapping[tuple[str, int, str], int]
    missing: tuple[str, ...] = ()

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


def stage(
    connection: duckdb.DuckDBPyConnection,
    zip_file: Path,
    extract: Extract,
    directory: Path,
    *,
    batch_rows: int,
    max_batches: int,
    report: Callable[[str], None] = lambda line: None,
) -> Staged:
    """Makes the staging file of an extract: complete under its name, or not there at all.

    Args:
        connection: an in-memory DuckDB.
        zip_file: the ZIP.
        extract: what the ZIP is, as `read_extract` says.
        directory: where staging files go.
        batch_rows: rows a batch holds at least, when there are that many.
        max_batches: batches at most.
        report: takes a line of progress.

    Raises:
        ExtractError: the ZIP does not hold what KBO publishes.
        StorageError: another process stages the same extract.
    """
    target = staging_file(directory, extract.key)
    unpacked = directory / f"{extract.key}.unpacked"
    with exclusive_lock(directory / f"{extract.key}.lock"):
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        try:
            files = unpack(zip_file, extract.key, unpacked)
            report(f"unpacked {len(files)} files")
            with replace_atomically(target) as temporary, attached(connection, temporary):
                _load(connection, extract, files, unpacked / "none.csv")
                _cut(connection, batch_rows, max_batches)
                _describe(connection, extract)
                connection.execute("CHECKPOINT staging")
                staged = read_staged(connection, missing_tables(files))
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
    report(f"{sum(staged.records.values())} rows in {len(staged.batches)} batches")
    return staged


@contextmanager
def open_staged(
    connection: duckdb.DuckDBPyConnection, directory: Path, key: ExtractKey
) -> Iterator[Staged]:
    """Attaches the staging file of an extract as `staging`, for reading.

    Raises:
        NotReadyError: there is none.
        DamagedError: it is not what was staged.
    """
    file = staging_file(directory, key)
    if not file.is_file():
        raise NotReadyError(f"{key}: not staged; materialize import_staging_* of {key} first")
    try:
        connection.execute(f"ATTACH {literal(file)} AS staging (READ_ONLY)")
    except duckdb.Error as error:
        if not is_damage(error):
            raise
        raise DamagedError(f"{file}: damaged ({_first_line(error)}); stage {key} again") from None
    try:
        staged = read_staged(connection)
        if staged.extract.key != key:
            raise RegisterError(f"{file}: holds {staged.extract.key}; stage {key} again")
        yield staged
    finally:
        connection.execute("DETACH staging")


def discard_staged(directory: Path, newest: int) -> None:
    """Removes what staging left of extracts that readers have, or that a Full has overtaken.

    What a process is staging now stays.

    Args:
        directory: where staging files are.
        newest: number of the newest published extract.
    """
    found: dict[ExtractKey, list[Path]] = {}
    for path in directory.glob("*"):
        try:
            key = ExtractKey.parse(path.name.split(".", 1)[0])
        except ExtractError:
            continue
        found.setdefault(key, []).append(path)
    for key, paths in found.items():
        lock = directory / f"{key}.lock"
        if key.number > newest or is_locked(lock):
            continue
        for path in (*paths, lock):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


_DAMAGE = (
    "not a valid DuckDB database file",
    "enough bytes",
    "Corrupt database file",
    "Failure while replaying WAL",
)
"""What DuckDB 1.5 says of a file that is not what it wrote."""


def is_damage(error: BaseException) -> bool:
    """Tells whether a file could not be read because of what is in it; that does not pass."""
    said = isinstance(error, duckdb.Error) and any(text in str(error) for text in _DAMAGE)
    return said or isinstance(error, duckdb.SerializationException | DamagedError)


@contextmanager
def attached(connection: duckdb.DuckDBPyConnection, file: Path) -> Iterator[None]:
    """Attaches a new file as `staging` and makes it the default database meanwhile."""
    connection.execute(f"ATTACH {literal(file)} AS staging")
    try:
        connection.execute("USE staging")
        yield
    finally:
        connection.execute("USE memory")
        connection.execute("DETACH staging")


def read_staged(connection: duckdb.DuckDBPyConnection, missing: list[str] | None = None) -> Staged:
    """Reads what the attached staging file says of itself."""
    row = connection.execute("FROM staging.extract").fetchone()
    if row is None:
        raise RegisterError("the staging file says nothing of its extract; stage it again")
    _, number, kind, snapshot_date, timestamp, version, source_file, sha256 = row
    extract = Extract(
        ExtractKey(number, cast(ExtractType, kind)),
        cast(datetime.date, snapshot_date),
        cast(datetime.datetime, timestamp),
        version,
        source_file,
        sha256,
    )
    batches = connection.execute("FROM staging.batch ORDER BY batch_number").fetchall()
    records = connection.execute(
        "SELECT table_name, batch_number, operation, records_count FROM staging.batch_records"
    ).fetchall()
    return Staged(
        extract,
        tuple(Batch(*batch) for batch in batches),
        {(name, batch, operation): count for name, batch, operation, count in records},
        tuple(missing or ()),
    )


def _load(
    connection: duckdb.DuckDBPyConnection,
    extract: Extract,
    files: Mapping[tuple[Table, Operation], CsvFile],
    unused: Path,
) -> None:
    connection.execute("CREATE SCHEMA staging.staged")
    for table in ALL_TABLES:
        mine = {o: files[table, o] for o in extract.key.operations if (table, o) in files}
        paths = {operation: glob_escaped(file.path) for operation, file in mine.items()}
        try:
            connection.execute(staging_sql.load_staged(table, list(mine)), paths)
        except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
            where = [f" ({o})" for o, file in mine.items() if f"file = {file.path}" in str(error)]
            raise ExtractError(
                f"{extract.source_file}: {table.name}{''.join(where)}: {_first_line(error)};"
                " fetch the ZIP again"
            ) from None
        for operation, file in mine.items():
            _check_count(connection, extract, table, operation, file)


def _check_count(
    connection: duckdb.DuckDBPyConnection,
    extract: Extract,
    table: Table,
    operation: Operation,
    file: CsvFile,
) -> None:
    """Every line of the file must be the header, a staged row, or a break inside a value."""
    ((rows, without_key),) = connection.execute(
        staging_sql.staged_records(table, operation)
    ).fetchall()
    name = f"{extract.source_file}: {table.name} ({operation})"
    if without_key:
        raise ExtractError(f"{name}: {without_key} rows without {table.key}; fetch the ZIP again")
    if file.lines == 1 + rows:
        return
    ((feeds,),) = connection.execute(staging_sql.staged_line_breaks(table, operation)).fetchall()
    if file.lines != 1 + rows + feeds:
        raise ExtractError(
            f"{name}: {file.lines} lines, but {rows} rows with {feeds} line breaks were read;"
            " see whether KBO changed the format"
        )


def _cut(connection: duckdb.DuckDBPyConnection, batch_rows: int, max_batches: int) -> None:
    """Cuts the axis of entity numbers so that no batch is small and none splits an entity."""

    def value(statement: str, **parameters: int) -> int | str | None:
        row = connection.execute(statement, parameters).fetchone()
        return cast("int | str | None", row[0] if row else None)

    connection.execute(staging_sql.count_by_entity())
    connection.execute(staging_sql.COUNT_ALONG_AXIS)
    total = cast(int, value(staging_sql.AXIS_TOTAL))
    target = batch_target(total, batch_rows, max_batches)
    starts: list[str | None] = [None]
    reached = 0
    while True:
        cut = cast("int | None", value(staging_sql.NEXT_CUT, reached=reached, target=target))
        if cut is None or total - cut < min(batch_rows, target) or total == cut:
            break
        reached = cut
        starts.append(cast(str, value(staging_sql.FIRST_AFTER_CUT, reached=reached)))
    connection.execute(staging_sql.CREATE_BATCH)
    ranges = zip(starts, [*starts[1:], None], strict=True)
    connection.executemany(
        "INSERT INTO batch VALUES (?, ?, ?)",
        [(number, first, after) for number, (first, after) in enumerate(ranges, start=1)],
    )
    connection.execute(staging_sql.COUNT_BY_BATCH)
    connection.execute("DROP TABLE axis")
    connection.execute("DROP TABLE records_of_entity")


def _describe(connection: duckdb.DuckDBPyConnection, extract: Extract) -> None:
    connection.execute(staging_sql.CREATE_EXTRACT)
    connection.execute(
        "INSERT INTO extract VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            str(extract.key),
            extract.key.number,
            extract.key.type,
            extract.snapshot_date,
            extract.timestamp,
            extract.version,
            extract.source_file,
            extract.sha256,
        ],
    )
    for table in ALL_TABLES:
        connection.execute(staging_sql.staging_view(table))


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
