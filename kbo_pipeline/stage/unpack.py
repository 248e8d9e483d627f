"""Unpack: the CSV files of a ZIP, inflated side by side, counted and compared with what KBO sends.

Nothing is named as in the ZIP: its names only say which of our tables a member is. No DuckDB.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TypeVar

from kbo_pipeline.core.extracts import Extract, ExtractKey, Operation
from kbo_pipeline.core.tables import ALL_TABLES, CODE, Column, Table, is_sent
from kbo_pipeline.fetch.archive import CHUNK, Archive, Member, open_archive
from kbo_pipeline.stage.faults import Fault, FaultyRecord, Header, read_header
from kbo_pipeline.stage.records import Counted, RecordCounter

Role = tuple[Table, Operation]
"""What a file says: which rows of which table go, or come."""

Chunk = TypeVar("Chunk")

_DECLARE = (
    "their values are kept nowhere; to have them, declare the columns in"
    ' kbo_pipeline/core/tables.py, as "Add a column" in README.md says'
)

NO_ROWS = "no rows in a Full"


@dataclass(frozen=True, slots=True)
class CsvFile:
    """One unpacked member.

    Attributes:
        path: where it lies now.
        member: what it is called in the ZIP.
        header: its first line.
        counted: its records, header included, and the commas between their fields.
    """

    path: Path
    member: str
    header: Header
    counted: Counted

    @property
    def rows(self) -> int:
        """Its records without the header."""
        return self.counted.records - 1

    @property
    def is_regular(self) -> bool:
        """Whether it can be read, and all its records have the right number of fields."""
        return self.header.fault is None and self.counted.fits(len(self.header.columns))


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The CSV files of an extract.

    Attributes:
        files: by what they say; a table whose pair is missing from an Update is not there.
        faults: why the extract cannot be read, as far as members and headers tell.
        warnings: what is odd and does no harm.
    """

    files: Mapping[Role, CsvFile]
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def expected_columns(table: Table, operation: Operation) -> tuple[Column, ...]:
    """The columns of a table's file: the key alone where rows go."""
    return table.columns[:1] if operation == "delete" else table.columns


def unpack(zip_file: Path, extract: Extract, directory: Path) -> Unpacked:
    """Inflates the CSV files of an extract and looks at their members, records and headers.

    Raises:
        ExtractError: the ZIP is not sound, or a member is damaged.
    """
    archive = open_archive(zip_file)
    key = extract.key
    members, missing, warnings = _members(archive, extract)
    largest_first = sorted(members.items(), key=lambda item: -item[1].length)

    def inflate(item: tuple[Role, Member]) -> CsvFile:
        (table, operation), member = item
        target = directory / f"{table.name}_{operation}.csv"
        counter = RecordCounter()
        with target.open("wb") as out:
            for chunk in counter.counted(made_ahead(archive.read(member))):
                out.write(chunk)
        columns = expected_columns(table, operation)
        optional = [c for c in columns if not is_sent(c.since, key.number, extract.snapshot_date)]
        header = read_header(target, member.name, columns, optional)
        return CsvFile(target, member.name, header, counter.result())

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        inflated = list(pool.map(inflate, largest_first))
    file_of = {role: file for (role, _), file in zip(largest_first, inflated, strict=True)}
    files = {role: file_of[role] for role in members}
    faults = [*missing, *(f.header.fault for f in files.values() if f.header.fault)]
    for (table, operation), file in files.items():
        if file.header.unknown:
            columns = ", ".join(file.header.unknown)
            more = f"; {_DECLARE}" if operation == "insert" else ""
            warnings.append(f"{file.member}: unknown columns are left out: {columns}{more}")
        if file.header.absent:
            columns = ", ".join(file.header.absent)
            warnings.append(f"{file.member}: without {columns}, as older extracts are: no values")
        if key.type == "full" and operation == "insert" and file.is_regular and not file.rows:
            if table.may_be_empty:
                warnings.append(f"{file.member}: {NO_ROWS}")
            else:
                faults.append(Fault(file.member, NO_ROWS))
    return Unpacked(files, faults, warnings)


def without(file: CsvFile, faulty: Sequence[FaultyRecord]) -> CsvFile:
    """A copy of a file without some of its records, counted anew; it lies beside the file."""
    target = file.path.with_suffix(".sound.csv")
    with file.path.open("rb") as source, target.open("wb") as out:
        for record in faulty:
            _copy(source, out, record.start - source.tell())
            source.seek(record.end)
        shutil.copyfileobj(source, out, CHUNK)
    counter = RecordCounter()
    with target.open("rb") as source:
        for _ in counter.counted(iter(lambda: source.read(CHUNK), b"")):
            pass
    return replace(file, path=target, counted=counter.result())


def _copy(source: IO[bytes], out: IO[bytes], length: int) -> None:
    while length > 0 and (chunk := source.read(min(length, CHUNK))):
        out.write(chunk)
        length -= len(chunk)


def made_ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks, each made while its taker is at work on the one before.

    Three quarters of a Full are one member: without that, a single core works at it at last.
    """
    with ThreadPoolExecutor(max_workers=1) as maker:
        following = maker.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = maker.submit(next, chunks, None)
            yield chunk


def _members(
    archive: Archive, extract: Extract
) -> tuple[dict[Role, Member], list[Fault], list[str]]:
    """The members by what they say, the ones that are missing, and what is odd."""
    key = extract.key
    names = {(table, o): name for table in ALL_TABLES for o, name in _names(table, key).items()}
    members = {
        role: archive.members[name] for role, name in names.items() if name in archive.members
    }
    faults, warnings = [], []
    for table in ALL_TABLES:
        absent = [n for (t, _), n in names.items() if t is table and n not in archive.members]
        if table is not CODE and len(absent) == len(key.operations) > 1:
            warnings.append(f"{table.name}: no files in the ZIP: taken as empty")
        elif absent and not is_sent(table.since, key.number, extract.snapshot_date):
            warnings.append(f"{table.name}: no file in the ZIP, as in older extracts: no rows")
        else:
            faults += [Fault(name, "missing") for name in absent]
    known = {"meta.csv", *names.values()}
    unknown = sorted(m.name for name, m in archive.members.items() if name not in known)
    warnings += [f"{name[:80]}: an unknown member of the ZIP is left out" for name in unknown]
    return members, faults, warnings


def _names(table: Table, key: ExtractKey) -> dict[Operation, str]:
    if table is CODE or key.type == "full":
        return {"insert": f"{table.name}.csv"}
    return {operation: f"{table.name}_{operation}.csv" for operation in key.operations}
