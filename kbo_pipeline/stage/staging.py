"""Stage: from a ZIP to the extract's own DuckDB file, typed and cut into batches."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn

import duckdb
import numpy as np
from numpy.typing import NDArray

from kbo_pipeline.core.database import lock_down, new_file
from kbo_pipeline.core.extracts import (
    Extract,
    ExtractKey,
    ExtractType,
    Operation,
    batch_target,
    odd_day,
)
from kbo_pipeline.core.files import exclusive_lock, make_private, replace_atomically
from kbo_pipeline.core.progress import (
    ProgressReport,
    count_statements,
    not_reported,
    part_of,
    steps_of,
    watched,
)
from kbo_pipeline.core.schema import CREATE_REJECTED, SCHEMA_VERSION
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import glob_escaped, literal
from kbo_pipeline.core.tables import ALL_TABLES, TABLES, Table
from kbo_pipeline.core.text import counted, one_line
from kbo_pipeline.stage import sql as staging_sql
from kbo_pipeline.stage.faults import (
    Fault,
    FaultyRecord,
    RejectedError,
    faulty_records,
    first_faults,
)
from kbo_pipeline.stage.staged import Staged, read_staged, staging_file
from kbo_pipeline.stage.unpack import NO_ROWS, CsvFile, Unpacked, made_ahead, unpack, without

KNOWN_VERSION = "1.0.0"
"""The version of KBO's format that this was made for; others are read too, with a warning."""

FEW_FAULTY_ROWS = 10
FAULTY_SHARE = 1000
"""This many rows, or one in `FAULTY_SHARE`, may be set aside without being accepted by hand."""

_CREATE_NOTES = (
    staging_sql.CREATE_MEMBER,
    CREATE_REJECTED,
    staging_sql.CREATE_SUPERSEDED,
)

# What is done of the staging of a Full after each step, as measured.
_UNPACKED, _LOADED, _CUT = 0.12, 0.85, 0.93
_TABLE_LOADED = 0.75

_ANY_NUMBER = 2**40
_SHOWN_FAULTS = 5
_ROWS_NOTED = 1000  # together; one by one, each takes 4 ms
_HASH_BYTES = 8

_ROWS_FETCHED = 2**21
"""Rows whose hashes come from DuckDB at once."""

_LANE_BITS = 2
_LANES = 2**_LANE_BITS
"""By their first bits, hashes are sorted side by side."""

_ROWS_LOOKED_AT = 2**12
"""Rows of each batch that are looked at, of large batches, to find where the next one begins."""


def stage(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    zip_file: Path,
    extract: Extract,
    directory: Path,
    *,
    max_faulty_rows: int | None,
    accept_by: str = "kbo retry",
    report: Callable[[str], None] = lambda line: None,
    report_progress: ProgressReport = not_reported,
) -> Staged:
    """Makes the staging file of an extract: complete under its name, or not there at all.

    Records that do not hold what KBO publishes are set aside, when they are few.

    Args:
        connection: an in-memory DuckDB; it can be used for nothing else than staging afterwards.
        settings: say how large batches are, and how much memory the process may take; an eighth
            of that is for hashes of rows.
        zip_file: the ZIP.
        extract: what the ZIP is, as `read_extract` says.
        directory: where staging files go.
        max_faulty_rows: records that may be set aside at most, also of a large extract; None for
            any number: it was accepted by hand.
        accept_by: the command that does so, for the error.
        report: takes a line of progress.
        report_progress: takes how much is done.

    Raises:
        ExtractError: the ZIP is not sound.
        RejectedError: its files are not in KBO's form, or too many of their records; names the
            first faults.
        StorageError: another process stages the same extract.
    """
    target = staging_file(directory, extract.key)
    unpacked_dir = directory / f"{extract.key}.unpacked"
    with exclusive_lock(directory / f"{extract.key}.lock"):
        shutil.rmtree(unpacked_dir, ignore_errors=True)
        make_private(unpacked_dir)
        # A checkpoint would join row groups that are not full, and rewrite many: not worth it for
        # what is read twice. Where a Full becomes the register, it is done then.
        connection.execute("SET max_vacuum_tasks = 0")
        count_statements(connection)
        lock_down(connection, directory)
        try:
            report_unpacked = part_of(report_progress, 0, _UNPACKED)
            unpacked = unpack(zip_file, extract, unpacked_dir, report_unpacked)
            report(f"unpacked {len(unpacked.files)} files")
            with replace_atomically(target) as temporary, attached(connection, temporary):
                loading = _Loading(connection, extract, unpacked, max_faulty_rows, accept_by)
                loading.load(settings.memory_mb, part_of(report_progress, _UNPACKED, _LOADED))
                report_progress(_LOADED, "cutting the rows into batches")
                _cut(connection, extract.key, settings.batch_rows, settings.max_batches)
                _describe(connection, extract)
                report_progress(_CUT, "writing the staging file")
                connection.execute("CHECKPOINT staging")
                staged = read_staged(connection, loading.warnings)
        finally:
            shutil.rmtree(unpacked_dir, ignore_errors=True)
    report(f"{sum(staged.records.values())} rows in {len(staged.batches)} batches")
    return staged


@contextmanager
def attached(connection: duckdb.DuckDBPyConnection, file: Path) -> Iterator[None]:
    """Attaches a new file as `staging` and makes it the default database meanwhile."""
    connection.execute(f"ATTACH {literal(file)} AS staging{new_file(file)}")
    try:
        connection.execute("USE staging")
        yield
    finally:
        connection.execute("USE memory")
        connection.execute("DETACH staging")


class _Loading:
    """Fills the staged tables, and makes sure that they hold what the files do.

    The fast ways only say that something is wrong; the exact reading finds out what it is.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        extract: Extract,
        unpacked: Unpacked,
        max_faulty_rows: int | None,
        accept_by: str,
    ) -> None:
        self._connection, self._extract, self._unpacked = connection, extract, unpacked
        self._most, self._accept_by = max_faulty_rows, accept_by
        self._set_aside: list[tuple[CsvFile, FaultyRecord]] = []
        self._records = 0
        self.warnings = list(unpacked.warnings)

    def load(self, memory_mb: int, report: ProgressReport) -> None:
        """Fills all tables; `warnings` are complete then."""
        if self._unpacked.faults:
            self._refuse()
        for statement in _CREATE_NOTES:
            self._connection.execute(statement)
        sizes = [sum(f.rows + 1.0 for f in self._files(table).values()) for table in ALL_TABLES]
        for table, report_table in zip(ALL_TABLES, steps_of(report, sizes), strict=True):
            files = self._fill(table, part_of(report_table, 0, _TABLE_LOADED))
            report_table(_TABLE_LOADED, f"looking for rows that {table.name} has twice")
            _note_superseded(self._connection, table, self._extract.key.type, files, memory_mb)
        if self._most is not None:
            few = max(FEW_FAULTY_ROWS, self._records // FAULTY_SHARE)
            self._refuse_more_than(min(self._most, few))
        _note_rejected(self._connection, self._extract.key, self._set_aside)
        self.warnings += _warnings_of_rejected(self._set_aside)
        self.warnings += _oddities(self._connection, self._extract)

    def _files(self, table: Table) -> dict[Operation, CsvFile]:
        return {o: file for (t, o), file in self._unpacked.files.items() if t is table}

    def _fill(self, table: Table, report: ProgressReport) -> dict[Operation, CsvFile]:
        """Fills a table; returns its files without the records that are set aside."""
        files, rejected = self._files(table), dict[Operation, int]()
        try:
            unusual = _load_table(self._connection, self._extract, table, files, report)
        except _UnsoundError as error:
            files, rejected = self._without_faulty(table, files, str(error))
            try:
                unusual = _load_table(self._connection, self._extract, table, files, report)
            except _UnsoundError as again:
                self._refuse(Fault("", str(again)))
        self.warnings += unusual
        for operation, file in files.items():
            missing = rejected.get(operation, 0)
            counted = self._unpacked.files[table, operation].counted
            if counted.is_regular and counted.records != file.counted.records + missing:
                self._refuse(
                    Fault(file.member, "its records do not add up; report this as a defect")
                )
            self._connection.execute(
                "INSERT INTO member VALUES (?, ?, ?, ?, ?)",
                [file.member, table.name, operation, file.rows + missing, missing],
            )
            self._records += file.rows + missing
        return files

    def _without_faulty(
        self, table: Table, files: Mapping[Operation, CsvFile], error: str
    ) -> tuple[dict[Operation, CsvFile], dict[Operation, int]]:
        """Sets faulty records aside; returns files without them, and how many each had."""
        most = _ANY_NUMBER if self._most is None else self._most
        faulty: dict[Operation, list[FaultyRecord]] = {}
        for operation, file in files.items():
            first = islice(_faulty(file, table), most - len(self._set_aside) + 1)
            faulty[operation] = list(first)
            self._set_aside += ((file, record) for record in faulty[operation])
            self._refuse_more_than(most)
        if not any(faulty.values()):
            self._refuse(Fault("", error))
        sound = {o: without(file, faulty[o]) for o, file in files.items()}
        is_full = self._extract.key.type == "full"
        if is_full and not (table.may_be_empty or sound["insert"].rows):
            self._refuse(Fault(sound["insert"].member, NO_ROWS))
        return sound, {o: len(records) for o, records in faulty.items()}

    def _refuse_more_than(self, allowed: int) -> None:
        if len(self._set_aside) > allowed:
            self._refuse(accept=f"{self._accept_by} {self._extract.key} --accept-faults")

    def _refuse(self, *faults: Fault, accept: str = "") -> NoReturn:
        every = chain(self._unpacked.faults, faults, _faults_of_records(self._unpacked))
        raise RejectedError(self._extract.source_file, first_faults(every), accept=accept)


class _UnsoundError(Exception):
    """What DuckDB reads in the files of a table is not what KBO publishes."""


def _load_table(
    connection: duckdb.DuckDBPyConnection,
    extract: Extract,
    table: Table,
    files: Mapping[Operation, CsvFile],
    report: ProgressReport,
) -> list[str]:
    """Fills a staged table and counts along; returns what is unusual and does no harm.

    Raises:
        _UnsoundError: something does not fit.
    """
    if not all(file.is_regular for file in files.values()):
        raise _UnsoundError("a file with other records than KBO's")
    kind = extract.key.type
    columns = {o: file.header.columns for o, file in files.items()}
    values: dict[str, object] = {o: glob_escaped(file.path) for o, file in files.items()}
    if kind == "full":
        values |= {"date": extract.snapshot_date, "number": extract.key.number}
    try:
        rows = sum(file.rows for file in files.values())
        with watched(connection, report, f"loading {rows:,} rows of {table.name}"):
            connection.execute(staging_sql.load_staged(table, kind, columns), values)
    except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
        raise _UnsoundError(one_line(error)[:400]) from None
    for operation, file in files.items():
        rows = _count(connection, staging_sql.staged_rows(table, kind, operation))
        if rows != file.rows:
            raise _UnsoundError(f"{file.member}: {file.rows} records, but DuckDB read {rows}")
    if not table.columns[0].number and _count(connection, staging_sql.missing_keys(table)):
        raise _UnsoundError(f"{table.name}: a row without {table.columns[0].csv_name}")
    unusual = []
    present = {column for of_file in columns.values() for column in of_file}
    for column, statement in staging_sql.unusual_numbers(table, kind).items():
        if column not in present:  # it came later than this extract: no values
            continue
        if not (count := _count(connection, statement)):
            continue
        if _count(connection, staging_sql.unsound_numbers(table, kind, column)):
            raise _UnsoundError(f"{table.name}: {column.csv_name}: an invalid number")
        unusual.append(f"{table.name}: {column.csv_name}: {count:,} numbers of an unusual kind")
    return unusual


def _faulty(file: CsvFile, table: Table) -> Iterator[FaultyRecord]:
    return faulty_records(file.path, file.member, file.header.columns, table.columns[0])


def _faults_of_records(unpacked: Unpacked) -> Iterator[Fault]:
    for (table, _), file in unpacked.files.items():
        if file.header.fault is None:
            for record in _faulty(file, table):
                yield from record.faults


def _note_rejected(
    connection: duckdb.DuckDBPyConnection,
    key: ExtractKey,
    set_aside: Sequence[tuple[CsvFile, FaultyRecord]],
) -> None:
    for start in range(0, len(set_aside), _ROWS_NOTED):
        piece = set_aside[start : start + _ROWS_NOTED]
        faults = [record.faults[0] for _, record in piece]
        values = {
            "key": str(key),
            "files": [file.member for file, _ in piece],
            "lines": [record.line for _, record in piece],
            "raws": [record.text for _, record in piece],
            "columns": [fault.column or None for fault in faults],
            "reasons": [fault.reason for fault in faults],
        }
        connection.execute(staging_sql.NOTE_REJECTED, values)


def _warnings_of_rejected(set_aside: Sequence[tuple[CsvFile, FaultyRecord]]) -> Iterator[str]:
    """The warning about records that are set aside: how many, and the first of them."""
    if not set_aside:
        return
    first = "; ".join(str(record.faults[0]) for _, record in set_aside[:_SHOWN_FAULTS])
    more = len(set_aside) - _SHOWN_FAULTS
    rest = f"; and {more:,} more" if more > 0 else ""
    yield f"{counted(len(set_aside), 'row')} set aside, see rejected_row: {first}{rest}"


def _note_superseded(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    kind: ExtractType,
    files: Mapping[Operation, CsvFile],
    memory_mb: int,
) -> None:
    """Notes which rows are there twice; sorting hashes finds them ten times as fast as grouping."""
    rows = sum(file.rows for file in files.values())
    parts = 1 + rows * _HASH_BYTES // (memory_mb * 2**20 // 8)
    several = [
        _several(_hashes(connection, table, kind, rows, part, parts), rows) for part in range(parts)
    ]
    if any(len(hashes) for hashes in several):
        connection.execute(
            staging_sql.note_superseded(table, kind), {"several": np.concatenate(several).tolist()}
        )


def _several(pieces: Iterator[NDArray[np.uint64]], rows: int) -> NDArray[np.uint64]:
    """The hashes that several rows share, of one part of the hashes of `rows` rows."""
    lanes = [np.empty(rows, np.uint64) for _ in range(_LANES)]  # takes memory where it is filled
    lengths = [0] * _LANES
    for hashes in made_ahead(pieces):
        lane_of = hashes >> np.uint64(64 - _LANE_BITS)
        for number, lane in enumerate(lanes):
            of_lane = hashes[lane_of == number]
            lane[lengths[number] : lengths[number] + len(of_lane)] = of_lane
            lengths[number] += len(of_lane)
    filled = [lane[:length] for lane, length in zip(lanes, lengths, strict=True)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(_repeated, filled)))


def _hashes(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    kind: ExtractType,
    rows: int,
    part: int,
    parts: int,
) -> Iterator[NDArray[np.uint64]]:
    statement = staging_sql.row_hashes(table, kind)
    for first in range(0, rows, _ROWS_FETCHED):
        values = {"part": part, "parts": parts, "first": first, "next": first + _ROWS_FETCHED}
        yield np.asarray(connection.execute(statement, values).fetchnumpy()["row_hash"])


def _repeated(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _oddities(connection: duckdb.DuckDBPyConnection, extract: Extract) -> Iterator[str]:
    """Warnings about what is odd in the rows or the extract, and does no harm."""
    if extract.version != KNOWN_VERSION:
        yield f"meta.csv: Version {extract.version[:20]!r}; {KNOWN_VERSION} is what is known"
    if (day := odd_day(extract)) is not None:
        yield f"{extract.source_file}: {day}"
    for table in TABLES:
        if table.unique_key and (count := _count(connection, staging_sql.differing_rows(table))):
            yield f"{table.name}: of {count} numbers two different rows; the later of each counts"


def _count(connection: duckdb.DuckDBPyConnection, statement: str) -> int:
    ((count,),) = connection.execute(statement).fetchall()
    return int(count)


def _cut(
    connection: duckdb.DuckDBPyConnection, key: ExtractKey, batch_rows: int, max_batches: int
) -> None:
    """Cuts the axis of entity numbers so that no batch is small and none splits an entity."""
    rows = sum(
        _count(connection, staging_sql.staged_rows(table, key.type, operation))
        for table in TABLES
        for operation in key.operations
    )
    target = batch_target(rows, batch_rows, max_batches)
    step = max(1, target // _ROWS_LOOKED_AT) if target >= 2 * batch_rows else 1
    connection.execute(staging_sql.count_along_axis(step))
    records = connection.execute(staging_sql.RECORDS_ALONG_AXIS).fetchnumpy()["records"]
    until = np.cumsum(records)  # rows of the entities up to and with this one
    total = int(until[-1]) if len(until) else 0
    target = batch_target(total, batch_rows, max_batches)
    places: list[int] = []
    reached = 0
    while True:
        last = int(np.searchsorted(until, reached + target))
        if last >= len(until) or total - until[last] < max(1, min(batch_rows, target)):
            break
        reached = int(until[last])
        places.append(last + 1)
    firsts: list[str] = []
    if places:
        firsts = [
            name for (name,) in connection.execute(staging_sql.entities_at(places)).fetchall()
        ]
    connection.execute(staging_sql.CREATE_BATCH)
    ranges = zip([None, *firsts], [*firsts, None], strict=True)
    connection.executemany(
        "INSERT INTO batch VALUES (?, ?, ?)",
        [(number, first, after) for number, (first, after) in enumerate(ranges, start=1)],
    )
    bounds: dict[str, object] = {f"first{n}": first for n, first in enumerate(firsts, start=2)}
    connection.execute(staging_sql.count_by_batch(key.type, len(firsts) + 1), bounds)
    connection.execute("DROP TABLE temp.main.axis")


def _describe(connection: duckdb.DuckDBPyConnection, extract: Extract) -> None:
    connection.execute(staging_sql.CREATE_EXTRACT)
    connection.execute(
        "INSERT INTO extract VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            str(extract.key),
            extract.key.number,
            extract.key.type,
            extract.snapshot_date,
            extract.timestamp,
            extract.version,
            extract.source_file,
            extract.sha256,
            SCHEMA_VERSION,
        ],
    )
    for table in ALL_TABLES:
        connection.execute(staging_sql.staging_view(table, extract.key.type))
