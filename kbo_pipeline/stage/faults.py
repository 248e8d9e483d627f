"""What is wrong with the CSV files of an extract: place, reason and bytes of each fault.

The exact reading: only files that DuckDB or the counter refuse come here, so that their faulty
records can be set aside one by one, or people learn of all of them at once. No DuckDB.
"""

import csv
import itertools
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.files import move_into_place, replace_atomically
from kbo_pipeline.core.tables import Column

MOST_FAULTS = 20
"""How many faults of an extract are reported together."""

DATE_PATTERN = r"[0-9]{2}-[0-9]{2}-(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
"""A date as KBO writes it, `dd-mm-yyyy`, for Python and for DuckDB; the day may not exist."""

MAX_RECORD = 2 << 20  # bytes without the line end; DuckDB reads no longer ones
FAULT_COLUMNS = ("file", "line", "byte", "column", "reason", "found")

_MAX_HEADER = 1 << 16
_EXCERPT = 60
_WINDOW = 1 << 24  # bytes of a file that are looked at together
_LONGEST_LINE = 1 << 26  # bytes; what is longer counts as several records
_LINES_LOOKED_AT = 1000
"""Lines after which a record with broken quotes is taken to end with its first line."""

_TEXT = rb'"(?:[^"\0]++|"")*+"'
_BARE = rb'[^",\r\n\0]*+'

_YEAR = rb"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = rb"(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    rb"(?:(?:(?:0[1-9]|1[0-9]|2[0-8])-(?:0[1-9]|1[0-2])|(?:29|30)-(?:0[13-9]|1[0-2])"
    rb"|31-(?:0[13578]|1[02]))-" + _YEAR + rb"|29-02-(?:[0-9]{2}" + _LEAP + rb"|" + _LEAP + rb"00))"
)
"""A date of the calendar as KBO writes it, `dd-mm-yyyy`."""


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
        accept: the command that imports it without its faulty rows; empty where none can.
    """

    def __init__(
        self, source: str, faults: Sequence[Fault], report: Path | None = None, accept: str = ""
    ) -> None:
        """Says the first fault, how many more there are, and where they are reported."""
        more = len(faults) - 1
        at_least = "at least " if len(faults) == MOST_FAULTS else ""
        rest = f"; and {at_least}{more} more fault{'s' * (more > 1)}" if more else ""
        first = str(faults[0]).removesuffix("; fetch it again")
        step = f"see {report}; kbo import takes a sound ZIP" if report else "fetch the ZIP again"
        if accept:
            seen = f"see {report}; " if report else ""
            step = f"{seen}{accept} imports the rest, or kbo import a sound ZIP"
        super().__init__(f"{source}: {first}{rest}; {step}")
        self.faults, self.accept = tuple(faults), accept


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
    """Reads the names of the columns, which may come in any order, with unknown ones between."""
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


@dataclass(frozen=True, slots=True)
class FaultyRecord:
    """A record that cannot be taken, and where it stands.

    Attributes:
        start: how many bytes of the file come before it.
        end: how many come before what follows it.
        line: the line in which it begins, from 1.
        raw: the record as it stands, without its line end; `MAX_RECORD` bytes of it at most.
        faults: what is wrong with it, in order; one at least.
    """

    start: int
    end: int
    line: int
    raw: bytes
    faults: tuple[Fault, ...]

    @property
    def text(self) -> str:
        """The record as a text, in which bytes that are no UTF-8, and NUL, stand as their codes."""
        return self.raw.decode("utf-8", "backslashreplace").replace("\0", r"\x00")


def faulty_records(
    file: Path, member: str, columns: Sequence[Column | None], key: Column
) -> Iterator[FaultyRecord]:
    """Reads a CSV file with a sound header; yields, in order, the records that cannot be taken.

    What lies between them is sound: records in UTF-8 with the right number of fields, whose numbers
    and dates are such, and whose `key` is not empty. One regular expression passes over many.
    """
    with file.open("rb") as stream:
        header = stream.readline()
        form = _Form(member, columns, key, b"\r\n" if header.endswith(b"\r\n") else b"\n")
        line, before, window, at, is_last = 2, len(header), b"", 0, False
        while not is_last:
            window, before = window[at:], before + at
            at, searched, wanted = 0, 0, max(_WINDOW - len(window), MAX_RECORD)
            more = stream.read(wanted)
            is_last = len(more) < wanted
            window += more
            if is_last and window and not window.endswith(b"\n"):
                window += form.line_end  # the last record may do without
            while at < len(window):
                end = form.sound_until(window, at)
                if end == at:
                    if len(window) - at < form.reach and not is_last:
                        break
                    end, searched = form.end_of_record(window, at, searched)
                    if end > len(window):
                        window += stream.readline(_LONGEST_LINE)
                        end = len(window)
                    raw = window[at:end].removesuffix(form.line_end)
                    faults = form.faults(raw, line, before + at)
                    yield FaultyRecord(before + at, before + end, line, raw[:MAX_RECORD], faults)
                line += window.count(b"\n", at, end)
                at = end


class _Form:
    """What the records of a file must look like.

    Attributes:
        line_end: that of the header.
        reach: bytes in which a record must end, its line end included.
    """

    def __init__(
        self, member: str, columns: Sequence[Column | None], key: Column, line_end: bytes
    ) -> None:
        self.line_end, self.reach = line_end, MAX_RECORD + len(line_end)
        self._member, self._fields = member, len(columns)
        self._special = {c: _allowed(c, key) for c in columns if c and _allowed(c, key)}
        anything = b"(?:%s|%s)" % (_TEXT, _BARE)
        sound = (
            _quoted_or_bare(self._special[c]) if c in self._special else anything for c in columns
        )
        named = (b"(%s|%s)" % (_TEXT, _BARE) if c in self._special else anything for c in columns)
        self._sound = re.compile(b"(?:%s%s)*+" % (b",".join(sound), line_end))
        self._record = re.compile(b",".join(named) + line_end)
        self._any_record = re.compile(b"%s(?:,%s)*+%s" % (anything, anything, line_end))

    def sound_until(self, window: bytes, at: int) -> int:
        """Where the sound records end that begin there; no more than `reach` is looked at."""
        match = self._sound.match(window, at, at + self.reach)
        end = match.end() if match else at
        sound = window[at:end]
        if not sound.isascii():
            try:
                sound.decode()
            except UnicodeDecodeError as error:
                wrong, end = at + error.start, at
                while (record := self._record.match(window, end)) and record.end() <= wrong:
                    end = record.end()
        return end

    def end_of_record(self, window: bytes, at: int, searched: int) -> tuple[int, int]:
        """Where a faulty record ends; behind the window when its line does.

        One whose quotes are right at its own end, however many fields it has: where `RecordCounter`
        says it does. One whose quotes are broken where they are even in number, or where a line
        begins that has the right form. Says too until where no line has it, and takes what it said
        before.
        """
        stop = at + self.reach
        if record := self._any_record.match(window, at):  # it may be longer than is read
            return record.end(), searched
        first_line = window.find(b"\n", at) + 1 or len(window) + 1
        end, quotes = first_line, window.count(b'"', at, first_line)
        for _ in range(_LINES_LOOKED_AT):
            if at < searched or end > min(stop, len(window)):
                break
            if quotes % 2 == 0 or self._record.match(window, end, end + self.reach):
                return end, searched
            if end == len(window):
                break
            line, end = end, window.find(b"\n", end) + 1 or len(window)
            quotes += window.count(b'"', line, end)
        return first_line, max(searched, end)

    def faults(self, record: bytes, line: int, byte: int) -> tuple[Fault, ...]:
        """What is wrong with a record that begins there, without its line end."""
        if record.endswith((b"\r", b"\n")):
            end = record[-1:] + (b"\n" if record.endswith(b"\r") else b"")
            reason = "another line end than the header's"
            return (Fault(self._member, reason, line, byte, found=_shown(end)),)
        match = self._record.fullmatch(record + self.line_end) if record else None
        if match is None or len(record) > MAX_RECORD or not _is_utf8(record):
            at, reason = _explain(record, self._fields)
            excerpt = _shown(record[at : at + _EXCERPT] or record[:_EXCERPT])
            line, byte = line + record[:at].count(b"\n"), byte + at
            return (Fault(self._member, reason, line, byte, found=excerpt),)
        faults = []
        for group, (column, allowed) in enumerate(self._special.items(), start=1):
            value = match[group]
            if value.startswith(b'"'):
                value = value[1:-1].replace(b'""', b'"')
            if not re.fullmatch(allowed, value, re.DOTALL):
                at = match.start(group)
                place = line + record[:at].count(b"\n"), byte + at
                fault = Fault(self._member, _reason(column), *place, column.csv_name, _shown(value))
                faults.append(fault)
        return tuple(faults)


def _allowed(column: Column, key: Column) -> bytes:
    """The values that a column takes, as a regular expression; empty where it takes all."""
    if column.number:
        return column.allowed_number.encode()
    if column.type == "DATE":
        return b"(?:%s)?" % _DATE
    return b".+" if column is key else b""


def _quoted_or_bare(allowed: bytes) -> bytes:
    if allowed == b".+":
        return rb'(?:"(?:[^"\0]++|"")++"|[^",\r\n\0]++)'
    return b'(?:"(?:%s)"|(?:%s))' % (allowed, allowed)


def _reason(column: Column) -> str:
    if column.number:
        return "no number of that kind"
    return "no date dd-mm-yyyy" if column.type == "DATE" else "empty"


def first_faults(faults: Iterable[Fault]) -> list[Fault]:
    """The first faults, as many as are reported together."""
    return list(itertools.islice(faults, MOST_FAULTS))


@contextmanager
def reported(directory: Path, zip_file: Path) -> Iterator[None]:
    """Moves a ZIP that is refused into `directory`, with `report.csv` beside it that says why.

    The directory is removed when the ZIP is not refused.

    Raises:
        RejectedError: what the block raises, with the place of the report.
    """
    try:
        yield
    except ExtractError as error:
        faults: Sequence[Fault] = [Fault("", str(error).removeprefix(f"{zip_file.name}: "))]
        accept = ""
        if isinstance(error, RejectedError):
            faults, accept = error.faults, error.accept
        report = directory / "report.csv"
        shutil.rmtree(directory, ignore_errors=True)
        _write_report(report, faults)
        if zip_file.is_file():
            move_into_place(zip_file, directory / zip_file.name)
        raise RejectedError(zip_file.name, faults, report, accept) from None
    shutil.rmtree(directory, ignore_errors=True)


def _write_report(file: Path, faults: Sequence[Fault]) -> None:
    with replace_atomically(file) as temporary, temporary.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(FAULT_COLUMNS)
        writer.writerows([getattr(fault, name) for name in FAULT_COLUMNS] for fault in faults)


def _explain(record: bytes, columns: int) -> tuple[int, str]:
    """The byte at which a record is wrong, and the reason."""
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


def _shown(value: bytes) -> str:
    """A value as a Python literal, so that it cannot do anything wherever it is shown."""
    text = repr(value[:_EXCERPT].decode("utf-8", "backslashreplace"))
    return text if len(value) <= _EXCERPT else f"{text}..."
