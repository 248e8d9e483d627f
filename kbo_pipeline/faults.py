"""What is wrong with the CSV files of an extract: place, reason and bytes of each fault.

The exact and slow reading: only files that DuckDB or the counter refuse come here, so that people
learn everything at once, and do not mend one fault a run. No DuckDB, no Dagster.
"""

import csv
import datetime
import itertools
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kbo_pipeline.errors import ExtractError
from kbo_pipeline.files import move_into_place, replace_atomically
from kbo_pipeline.tables import Column, number_pattern

MOST_FAULTS = 20
"""How many faults of an extract are reported together."""

DATE_PATTERN = r"[0-9]{2}-[0-9]{2}-(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
"""A date as KBO writes it, `dd-mm-yyyy`, for Python and for DuckDB; the day may not exist."""

MAX_RECORD = 2 << 20  # bytes; DuckDB reads no longer ones
FAULT_COLUMNS = ("file", "line", "byte", "column", "reason", "found")

_MAX_HEADER = 1 << 16
_EXCERPT = 60
_TEXT = rb'"(?:[^"\0]++|"")*+"'
_BARE = rb'[^",\r\n\0]*+'
_DATE = re.compile(DATE_PATTERN.encode())


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in an extract.

    Attributes:
        file: the member of the ZIP; empty when it is about the ZIP.
        reason: what is wrong.
        line: the line in which it is, from 1; None when it has no place.
        byte: how many bytes of the file come before it; None when it has no place.
        column: KBO's name of the column; empty when it is about a whole record.
        found: what stands there, as a Python literal, shortened.
    """

    file: str
    reason: str
    line: int | None = None
    byte: int | None = None
    column: str = ""
    found: str = ""

    def __str__(self) -> str:
        places = (
            self.file,
            f"line {self.line} (byte {self.byte})" if self.line is not None else "",
            self.column,
            f"{self.reason}: {self.found}" if self.found else self.reason,
        )
        return ": ".join(place for place in places if place)


class RejectedError(ExtractError):
    """An extract is refused, for reasons that are all named.

    Attributes:
        faults: the first of them, at most `MOST_FAULTS`.
    """

    def __init__(self, source: str, faults: Sequence[Fault], report: Path | None = None) -> None:
        """Says the first fault, how many more there are, and where they are reported."""
        more = len(faults) - 1
        at_least = "at least " if len(faults) == MOST_FAULTS else ""
        rest = f"; and {at_least}{more} more fault{'s' * (more > 1)}" if more else ""
        first = str(faults[0]).removesuffix("; fetch it again")
        step = f"see {report}, bring a sound ZIP" if report else "fetch the ZIP again"
        super().__init__(f"{source}: {first}{rest}; {step}")
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a CSV file.

    Attributes:
        columns: in the order of the file; None for one that KBO did not use to send.
        unknown: names of those, as they can be shown.
        absent: names of columns that older extracts have not, and that are not there.
        fault: why the file cannot be read; `columns` is empty then.
    """

    columns: tuple[Column | None, ...] = ()
    unknown: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    fault: Fault | None = None


def read_header(
    file: Path, member: str, expected: Sequence[Column], optional: Sequence[Column] = ()
) -> Header:
    """Reads the names of the columns, which may come in any order, with unknown ones between.

    Args:
        file: the CSV file.
        member: what it is called in the ZIP.
        expected: the columns that it must have, in no order.
        optional: those of them that may be missing.
    """
    with file.open("rb") as stream:
        line = stream.readline(_MAX_HEADER)
    if not line:
        return Header(fault=Fault(member, "an empty file, without even a header"))
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
        names = next(csv.reader([text], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        names = []
    by_name = {column.csv_name: column for column in expected}
    absent = [name for name in by_name if name not in names]
    missing = [name for name in absent if by_name[name] not in optional]
    twice = [name for name in by_name if names.count(name) > 1]
    if missing or twice:
        what = f"{', '.join(missing)} missing" if missing else f"{', '.join(twice)} twice"
        reason = f"the header must name {','.join(by_name)}; {what}"
        return Header(fault=Fault(member, reason, 1, 0, found=_shown(line)))
    columns = tuple(by_name.get(name) for name in names)
    unknown = tuple(_shown(name.encode()) for name in names if name not in by_name)
    return Header(columns, unknown, tuple(absent))


def file_faults(
    file: Path, member: str, columns: Sequence[Column | None], key: Column
) -> Iterator[Fault]:
    """Reads a CSV file record by record; yields its faults in order.

    Args:
        file: the CSV file, with a sound header.
        member: what it is called in the ZIP.
        columns: of the file, as `read_header` says.
        key: the column that may never be empty.
    """
    special = [c for c in columns if c is not None and (c.type == "DATE" or c.number or c is key)]
    pattern = re.compile(
        b",".join(
            (b"(%s|%s)" if column in special else b"(?:%s|%s)") % (_TEXT, _BARE)
            for column in columns
        )
    )
    for line, byte, record, end, line_end in _records(file):
        if end not in (line_end, b""):
            yield Fault(member, "another line end than the header's", line, byte, found=_shown(end))
            continue
        match = pattern.fullmatch(record) if record and len(record) <= MAX_RECORD else None
        if match is None or not _is_utf8(record):
            at, reason = _explain(record, len(columns))
            before = record[:at].count(b"\n")
            yield Fault(
                member,
                reason,
                line + before,
                byte + at,
                found=_shown(record[at : at + _EXCERPT] or record[:_EXCERPT]),
            )
            continue
        for place, column in enumerate(special, start=1):
            value = match[place]
            if value.startswith(b'"'):
                value = value[1:-1].replace(b'""', b'"')
            wrong = _wrong(column, value, is_key=column is key)
            if wrong:
                at = match.start(place)
                yield Fault(
                    member,
                    wrong,
                    line + record[:at].count(b"\n"),
                    byte + at,
                    column.csv_name,
                    _shown(value),
                )


def first_faults(faults: Iterable[Fault]) -> list[Fault]:
    """The first faults, as many as are reported together."""
    return list(itertools.islice(faults, MOST_FAULTS))


@contextmanager
def reported(directory: Path, zip_file: Path) -> Iterator[None]:
    """Puts a ZIP that is refused aside, with `report.csv` beside it that says why.

    The directory is removed when the ZIP is not refused.

    Args:
        directory: for this extract alone; made when it is needed.
        zip_file: the ZIP that the block reads; it is moved.

    Raises:
        RejectedError: what the block raises, with the place of the report.
    """
    try:
        yield
    except ExtractError as error:
        faults: Sequence[Fault] = [Fault("", str(error).removeprefix(f"{zip_file.name}: "))]
        if isinstance(error, RejectedError):
            faults = error.faults
        report = directory / "report.csv"
        shutil.rmtree(directory, ignore_errors=True)
        _write_report(report, faults)
        if zip_file.is_file():
            move_into_place(zip_file, directory / zip_file.name)
        raise RejectedError(zip_file.name, faults, report) from None
    shutil.rmtree(directory, ignore_errors=True)


def _write_report(file: Path, faults: Sequence[Fault]) -> None:
    with replace_atomically(file) as temporary, temporary.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(FAULT_COLUMNS)
        writer.writerows([getattr(fault, name) for name in FAULT_COLUMNS] for fault in faults)


def _records(file: Path) -> Iterator[tuple[int, int, bytes, bytes, bytes]]:
    """Yields line, byte, record, its line end, and the header's, for all records after the header.

    A text that is not closed within the longest record is given up: its first line is yielded
    alone, and reading goes on after it.
    """
    with file.open("rb") as stream:
        header = stream.readline()
        line_end = b"\r\n" if header.endswith(b"\r\n") else b"\n"
        line, byte = 2, len(header)
        while first := stream.readline(MAX_RECORD + 1):
            lines = [first]
            length, quotes, after_first = len(first), first.count(b'"'), stream.tell()
            while quotes % 2 and length <= MAX_RECORD and (more := stream.readline(MAX_RECORD + 1)):
                lines.append(more)
                length += len(more)
                quotes += more.count(b'"')
            if quotes % 2 and len(lines) > 1:
                stream.seek(after_first)
                lines = lines[:1]
            raw = b"".join(lines)
            end = b"\r\n" if raw.endswith(b"\r\n") else b"\n" if raw.endswith(b"\n") else b""
            yield line, byte, raw.removesuffix(end), end, line_end
            line += raw.count(b"\n")
            byte += len(raw)


def _explain(record: bytes, columns: int) -> tuple[int, str]:
    """Where a record is wrong, and how."""
    if not record:
        return 0, "a blank line"
    if len(record) > MAX_RECORD:
        return 0, f"a record of more than {MAX_RECORD:,} bytes"
    if b"\0" in record:
        return record.index(b"\0"), "a NUL byte"
    try:
        record.decode()
    except UnicodeDecodeError as error:
        return error.start, "no UTF-8"
    text, bare = re.compile(_TEXT), re.compile(_BARE)
    at = fields = 0
    while True:
        fields += 1
        is_text = record.startswith(b'"', at)
        match = (text if is_text else bare).match(record, at)
        if match is None:
            return at, "a text opens here that nothing closes"
        at = match.end()
        if at == len(record):
            return 0, f"{fields} field{'s' * (fields > 1)}, not {columns}"
        if not record.startswith(b",", at):
            if is_text:
                return at - 1, "a quote inside a text that is not doubled"
            if record[at : at + 1] == b'"':
                return at, "a quote inside a value that has none around it"
            return at, "a line break outside of quotes"
        at += 1


def _is_utf8(record: bytes) -> bool:
    if record.isascii():
        return True
    try:
        record.decode()
    except UnicodeDecodeError:
        return False
    return True


def _wrong(column: Column, value: bytes, *, is_key: bool) -> str:
    """Why a value may not stand in its column; empty when it may."""
    if column.number:
        if not re.fullmatch(number_pattern(column.number).encode(), value):
            return "no number of that kind"
    elif is_key and not value:
        return "empty"
    elif column.type == "DATE" and value and not _is_date(value):
        return "no date dd-mm-yyyy"
    return ""


def _is_date(value: bytes) -> bool:
    if not _DATE.fullmatch(value):
        return False
    day, month, year = (int(part) for part in value.split(b"-"))
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return True


def _shown(value: bytes) -> str:
    """A value as a Python literal, so that it cannot do anything wherever it is shown."""
    text = repr(value[:_EXCERPT].decode("utf-8", "backslashreplace"))
    return text if len(value) <= _EXCERPT else f"{text}..."
