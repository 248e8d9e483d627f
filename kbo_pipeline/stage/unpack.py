"""Unpack: the CSV files of a ZIP, inflated side by side, counted and compared with what KBO sends.

Nothing is named as in the ZIP: its names only say which of our tables a member is. No DuckDB.
"""

import codecs
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray

from kbo_pipeline.core.extracts import Extract, ExtractKey, Operation
from kbo_pipeline.core.progress import ProgressReport, not_reported
from kbo_pipeline.core.tables import ALL_TABLES, CODE, Column, Table, is_sent
from kbo_pipeline.fetch.archive import CHUNK, Archive, Member, open_archive
from kbo_pipeline.stage.faults import Fault, FaultyRecord, Header, read_header

Role = tuple[Table, Operation]
"""What a file says: which rows of which table go, or come."""

Chunk = TypeVar("Chunk")

_DECLARE = (
    "their values are kept nowhere; to have them, declare the columns in"
    ' kbo_pipeline/core/tables.py, as "Add a column" in README.md says'
)

NO_ROWS = "no rows in a Full"

_Bits = NDArray[np.uint64]
_QUOTE, _COMMA, _LF, _CR = (ord(character) for character in '",\n\r')
_BOM = codecs.BOM_UTF8
_ONE, _LAST = np.uint64(1), np.uint64(63)
_SHIFTS = tuple(np.uint64(1 << power) for power in range(6))


@dataclass(frozen=True, slots=True)
class Counted:
    """What a CSV file holds.

    Attributes:
        records: its records, the header included; a last one without a line end counts.
        separators: commas between fields, in all records together.
        is_regular: UTF-8 without NUL; quotes only around whole fields or doubled inside; line ends
            are LF, or all CRLF; no record is blank; the last text is closed.
    """

    records: int
    separators: int
    is_regular: bool

    def fits(self, columns: int) -> bool:
        """Whether it is regular and has this many fields a record, taken together."""
        return self.is_regular and self.separators == self.records * (columns - 1)


@dataclass(frozen=True, slots=True)
class CsvFile:
    """One unpacked member.

    Attributes:
        path: where it lies now.
        member: its name in the ZIP.
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


def unpack(
    zip_file: Path,
    extract: Extract,
    directory: Path,
    report_progress: ProgressReport = not_reported,
) -> Unpacked:
    """Inflates the CSV files of an extract and looks at their members, records and headers.

    Raises:
        ExtractError: the ZIP is not sound, or a member is damaged.
    """
    archive = open_archive(zip_file)
    key = extract.key
    members, missing, warnings = _members(archive, extract)
    largest_first = sorted(members.items(), key=lambda item: -item[1].length)
    length = sum(member.length for member in members.values()) or 1
    lock, inflated_bytes = threading.Lock(), 0

    def inflate(item: tuple[Role, Member]) -> CsvFile:
        nonlocal inflated_bytes
        (table, operation), member = item
        target = directory / f"{table.name}_{operation}.csv"
        counter = RecordCounter()
        with target.open("wb") as out:
            for chunk in counter.counted(made_ahead(archive.read(member))):
                out.write(chunk)
                with lock:
                    inflated_bytes += len(chunk)
                report_progress(inflated_bytes / length, f"unpacking {member.name}")
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

    Three quarters of a Full are one member: without this, a single core would work on it in the
    end.
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


class RecordCounter:
    """Counts records while the bytes of a file pass by; gives about 1.5 GB a second and core.

    KBO writes RFC 4180: a comma, `"` around texts, `""` for a quote inside, line breaks inside
    texts. One pass, 64 bytes at a time, says how many records and fields there are and whether each
    quote is where it may be; DuckDB must come to the same.
    """

    def __init__(self) -> None:
        """Nothing has passed yet."""
        self._records = self._separators = self._line_feeds = self._crlfs = 0
        self._is_regular = True
        self._is_first = True
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._is_decoding = False
        self._is_inside = False  # a text has begun
        self._follows_separator = True  # the byte before was a comma, a line end, or none
        self._follows_quote = False
        self._follows_line_end = True
        self._needs_separator = False  # a text ended with the byte before
        self._needs_line_feed = False  # a CR was the byte before

    def counted(self, chunks: Iterable[bytes]) -> Iterable[bytes]:
        """Hands the chunks on; each but the last must be a multiple of 64 bytes long."""
        for chunk in chunks:
            self._check_text(chunk)
            self._count(chunk)
            yield chunk

    def result(self) -> Counted:
        """What was counted, once all chunks have passed."""
        if self._is_decoding:
            self._decode_or_fail(b"", final=True)
        is_ended = self._follows_line_end
        is_regular = (
            self._is_regular
            and not self._is_inside
            and not self._needs_line_feed
            and self._crlfs in (0, self._line_feeds)
        )
        return Counted(self._records + (not is_ended), self._separators, is_regular)

    def _check_text(self, chunk: bytes) -> None:
        if b"\0" in chunk:
            self._is_regular = False
        if self._is_decoding or not chunk.isascii():
            self._decode_or_fail(chunk, final=False)

    def _decode_or_fail(self, chunk: bytes, *, final: bool) -> None:
        self._is_decoding = True
        try:
            self._decode(chunk, final)
        except UnicodeDecodeError:
            self._is_regular = False
            self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def _count(self, chunk: bytes) -> None:
        body = chunk
        if self._is_first:
            self._is_first = False
            if chunk.startswith(_BOM):
                body = b",,," + chunk[3:]  # as separators they are no error; see below
                self._separators -= 3
        data = np.frombuffer(body, np.uint8)
        quotes, commas = _bits(data, _QUOTE), _bits(data, _COMMA)
        feeds = _bits(data, _LF)
        inside = _prefix_parity(quotes, self._is_inside)
        self._is_inside = bool(inside[-1] >> _LAST)
        outside = ~inside
        separators, line_ends = commas & outside, feeds & outside
        ends = separators | line_ends
        last = np.uint64((len(data) - 1) % 64)
        if b"\r" in chunk:
            returns = _bits(data, _CR) & outside
            self._check_returns(returns, feeds, line_ends, last)
        else:
            returns = np.zeros_like(quotes)
            if self._needs_line_feed:
                self._is_regular &= bool(feeds[0] & _ONE)
                self._crlfs += int(feeds[0] & _ONE)
            self._needs_line_feed = False
        # A text begins after a separator, or right after one has ended: that is a doubled quote.
        begins, closes = quotes & inside, quotes & outside
        before = _shifted_up(ends | quotes, self._follows_separator or self._follows_quote)
        after_close = ends | quotes | returns
        if self._needs_separator and not after_close[0] & _ONE:
            self._is_regular = False
        open_ended = closes & ~_shifted_down(after_close)
        self._needs_separator = bool(open_ended[-1] >> last & _ONE)
        open_ended[-1] &= ~(_ONE << last)
        # A line end that begins a record ends a blank one.
        starts = _shifted_up(line_ends, self._follows_line_end)
        blank = (line_ends | returns) & starts
        if (begins & ~before).any() or open_ended.any() or blank.any():
            self._is_regular = False
        self._separators += int(np.bitwise_count(separators).sum())
        fed = int(np.bitwise_count(line_ends).sum())
        self._records += fed
        self._line_feeds += fed
        self._follows_separator = bool(ends[-1] >> last & _ONE)
        self._follows_quote = bool(quotes[-1] >> last & _ONE)
        self._follows_line_end = bool(line_ends[-1] >> last & _ONE)

    def _check_returns(
        self, returns: _Bits, feeds: _Bits, line_ends: _Bits, last: np.uint64
    ) -> None:
        if self._needs_line_feed:
            self._is_regular &= bool(feeds[0] & _ONE)
            self._crlfs += int(feeds[0] & _ONE)
        alone = returns & ~_shifted_down(line_ends)
        self._needs_line_feed = bool(alone[-1] >> last & _ONE)
        alone[-1] &= ~(_ONE << last)
        if alone.any():
            self._is_regular = False
        self._crlfs += int(np.bitwise_count(returns & _shifted_down(line_ends)).sum())


def _bits(data: NDArray[np.uint8], byte: int) -> _Bits:
    """One bit a byte, set where it is this one; bit 0 of the first word is the first byte."""
    packed = np.packbits(data == byte, bitorder="little")
    if len(packed) % 8:
        packed = np.concatenate([packed, np.zeros(-len(packed) % 8, np.uint8)])
    return packed.view(np.uint64)


def _prefix_parity(bits: _Bits, is_odd_before: bool) -> _Bits:
    """For each bit whether the number of set bits up to and with it is odd."""
    parity = bits.copy()
    for shift in _SHIFTS:
        parity ^= parity << shift
    odd = (parity >> _LAST).astype(np.uint8)
    before = np.empty_like(odd)
    before[0] = is_odd_before
    np.bitwise_xor.accumulate(odd[:-1], out=before[1:])
    before[1:] ^= before[0]
    parity ^= np.uint64(0) - before.astype(np.uint64)
    return parity


def _shifted_up(bits: _Bits, first: bool) -> _Bits:
    """Each bit at the place of the byte after it."""
    shifted = bits << _ONE
    shifted[1:] |= bits[:-1] >> _LAST
    shifted[0] |= np.uint64(first)
    return shifted


def _shifted_down(bits: _Bits) -> _Bits:
    """Each bit at the place of the byte before it."""
    shifted = bits >> _ONE
    shifted[:-1] |= bits[1:] << _LAST
    return shifted
