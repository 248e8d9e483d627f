"""Extracts: their keys, their ZIPs, what is inside. No network, no database."""

import csv
import datetime
import hashlib
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from isal import isal_zlib

from kbo_pipeline.errors import ExtractError
from kbo_pipeline.tables import ALL_TABLES, CODE, TABLES, Table

ExtractType = Literal["full", "update"]
Operation = Literal["delete", "insert"]

_KEY = re.compile(r"(\d{4,9})-(full|update)")
_FILE_NAME = re.compile(
    r"KboOpenData_(?P<number>\d{4,9})_\d{4}_\d{2}(_\d{2})?_(?P<type>Full|Update)\.zip",
    re.ASCII | re.IGNORECASE,
)
_CHUNK = 1 << 20
_UNREADABLE = (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, zlib.error)
"""What zipfile raises for a damaged, encrypted or otherwise unreadable ZIP."""
_InflateError = cast(type[Exception], isal_zlib.error)  # its stub says it is an instance


@dataclass(frozen=True, slots=True)
class ExtractKey:
    """Names one extract; as text `0141-update`, the key of its partition."""

    number: int
    type: ExtractType

    @classmethod
    def parse(cls, text: str) -> "ExtractKey":
        """Reads a key such as `0141-update`.

        Raises:
            ExtractError: the text is no key, or not the one way to write it.
        """
        match = _KEY.fullmatch(text)
        if match:
            key = cls(int(match[1]), cast(ExtractType, match[2]))
            if key.number > 0 and str(key) == text:
                return key
        raise ExtractError(f"{text[:80]!r} is no extract; expected a key such as 0141-update")

    def __str__(self) -> str:
        return f"{self.number:04d}-{self.type}"

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What its files do, in the order in which it counts: deletes first, inserts after."""
        return ("insert",) if self.type == "full" else ("delete", "insert")


@dataclass(frozen=True, slots=True)
class Extract:
    """One KBO ZIP, as its `meta.csv` describes it.

    Attributes:
        key: number and type.
        snapshot_date: the day whose end the data shows.
        timestamp: when KBO made it, in Brussels time.
        version: version of the file format.
        source_file: the ZIP's file name.
        sha256: of the ZIP, in hexadecimal.
    """

    key: ExtractKey
    snapshot_date: datetime.date
    timestamp: datetime.datetime
    version: str
    source_file: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name that KBO gives to a daily ZIP of this key; it carries the publication day."""
        kind = self.key.type.capitalize()
        return f"KboOpenData_{self.key.number:04d}_{self.timestamp:%Y_%m_%d}_{kind}.zip"


@dataclass(frozen=True, slots=True)
class CsvFile:
    """One unpacked member.

    Attributes:
        path: where it lies now.
        lines: line feeds in it, counted while it was inflated; a last line without one counts.
    """

    path: Path
    lines: int


def read_key(zip_file: Path) -> ExtractKey:
    """Reads the key of a ZIP; takes no time, whatever its size.

    Raises:
        ExtractError: no ZIP, no sound `meta.csv`, or a file name that says another extract.
    """
    return _key_in(zip_file, _meta(zip_file))


def read_extract(zip_file: Path) -> Extract:
    """Reads which extract a ZIP is.

    Raises:
        ExtractError: no ZIP, no sound `meta.csv`, or a file name that says another extract.
    """
    meta = _meta(zip_file)
    key = _key_in(zip_file, meta)
    with _meta_errors(zip_file):
        snapshot_date = datetime.datetime.strptime(meta["SnapshotDate"], "%d-%m-%Y").date()
        timestamp = datetime.datetime.strptime(meta["ExtractTimestamp"], "%d-%m-%Y %H:%M:%S")
        version = meta["Version"]
    return Extract(key, snapshot_date, timestamp, version, zip_file.name, _sha256(zip_file))


def key_or_none(text: str) -> ExtractKey | None:
    """The extract that a text is the key of; None for a text that is none."""
    try:
        return ExtractKey.parse(text)
    except ExtractError:
        return None


def key_in_file_name(name: str) -> ExtractKey | None:
    """The extract that a file name of KBO's style speaks of; None for any other name."""
    match = _FILE_NAME.fullmatch(name)
    if match is None or int(match["number"]) == 0:
        return None
    return ExtractKey(int(match["number"]), cast(ExtractType, match["type"].lower()))


def damage(file: Path) -> str | None:
    """What is wrong with a ZIP, reading every member against its CRC; None for a sound one."""
    try:
        with file.open("rb") as stream:
            if stream.read(2) != b"PK":
                return "it does not start as a ZIP does"
        with zipfile.ZipFile(file) as archive:
            member = archive.testzip()
    except _UNREADABLE as error:
        return str(error)
    return None if member is None else f"the CRC of {member} is wrong"


def unpack(
    zip_file: Path, key: ExtractKey, directory: Path
) -> dict[tuple[Table, Operation], CsvFile]:
    """Inflates the CSV files of an extract, side by side, checking length, CRC and header of each.

    A table whose pair of files is missing from an Update is left out of the result.

    Args:
        zip_file: the ZIP.
        key: what the ZIP is.
        directory: an existing directory to write to; the names in it are ours, not the ZIP's.

    Raises:
        ExtractError: a member is missing, damaged, or has another header.
    """
    with _open_zip(zip_file) as archive:
        members = _members(zip_file, archive, key)
        largest_first = sorted(members.items(), key=lambda item: -item[1].file_size)

        def inflate(item: tuple[tuple[Table, Operation], zipfile.ZipInfo]) -> CsvFile:
            (table, operation), member = item
            target = directory / f"{table.name}_{operation}.csv"
            lines = _inflate(zip_file, member, target)
            _check_header(zip_file, member.filename, target, table, operation)
            return CsvFile(target, lines)

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            files = list(pool.map(inflate, largest_first))
    return {role: file for (role, _), file in zip(largest_first, files, strict=True)}


def _open_zip(zip_file: Path) -> zipfile.ZipFile:
    if not zip_file.is_file():
        raise ExtractError(f"{zip_file}: no such file")
    try:
        return zipfile.ZipFile(zip_file)
    except _UNREADABLE as error:
        raise ExtractError(f"{zip_file.name}: no sound ZIP ({error}); fetch it again") from None


def _by_base_name(zip_file: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.lower()
        if name in found:
            raise ExtractError(f"{zip_file.name}: member {name} stands in it twice; fetch it again")
        found[name] = member
    return found


def _read_meta(zip_file: Path, archive: zipfile.ZipFile) -> Mapping[str, str]:
    member = _by_base_name(zip_file, archive).get("meta.csv")
    if member is None:
        raise ExtractError(f"{zip_file.name}: no meta.csv in it; this is no KBO extract")
    try:
        with archive.open(member) as stream:
            text = stream.read(_CHUNK).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        return {name: value for name, value in rows[1:]}
    except (*_UNREADABLE, csv.Error) as error:
        reason = " ".join(str(error).split()) or "it ends too early"
        raise ExtractError(f"{zip_file.name}: meta.csv: {reason}; fetch the ZIP again") from None


def _meta(zip_file: Path) -> Mapping[str, str]:
    with _open_zip(zip_file) as archive:
        return _read_meta(zip_file, archive)


def _key_in(zip_file: Path, meta: Mapping[str, str]) -> ExtractKey:
    with _meta_errors(zip_file):
        key = ExtractKey.parse(f"{meta['ExtractNumber']:0>4}-{meta['ExtractType'].lower()}")
    named = key_in_file_name(zip_file.name)
    if named is not None and named != key:
        raise ExtractError(
            f"{zip_file.name}: meta.csv says {key}, the file name says {named}; fetch the ZIP again"
        )
    return key


@contextmanager
def _meta_errors(zip_file: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as missing:
        raise ExtractError(
            f"{zip_file.name}: meta.csv has no {missing}; fetch the ZIP again"
        ) from None
    except (ValueError, ExtractError) as wrong:
        raise ExtractError(f"{zip_file.name}: meta.csv: {wrong}; fetch the ZIP again") from None


def _members(
    zip_file: Path, archive: zipfile.ZipFile, key: ExtractKey
) -> dict[tuple[Table, Operation], zipfile.ZipInfo]:
    found = _by_base_name(zip_file, archive)
    members: dict[tuple[Table, Operation], zipfile.ZipInfo] = {}
    for table in ALL_TABLES:
        whole = table is CODE or key.type == "full"
        names: dict[Operation, str] = (
            {"insert": f"{table.name}.csv"}
            if whole
            else {o: f"{table.name}_{o}.csv" for o in key.operations}
        )
        present: dict[Operation, zipfile.ZipInfo] = {
            operation: found[name] for operation, name in names.items() if name in found
        }
        if present.keys() != names.keys() and (whole or present):
            missing = ", ".join(n for n in names.values() if n not in found)
            raise ExtractError(f"{zip_file.name}: {missing} is missing; fetch the ZIP again")
        members.update({(table, operation): member for operation, member in present.items()})
    return members


def missing_tables(files: Mapping[tuple[Table, Operation], CsvFile]) -> list[str]:
    """Names of the tables that an extract brings no file for."""
    present = {table.name for table, _ in files}
    return [table.name for table in TABLES if table.name not in present]


def _raw_chunks(stream: IO[bytes], zip_file: Path, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The member's bytes as they lie in the file, after its local header (APPNOTE 4.3.7)."""
    stream.seek(member.header_offset)
    header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise ExtractError(f"{zip_file.name}: {member.filename}: no local header; fetch it again")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    stream.seek(name_length + extra_length, os.SEEK_CUR)
    left = member.compress_size
    while left > 0 and (chunk := stream.read(min(left, _CHUNK))):
        left -= len(chunk)
        yield chunk


def _inflate(zip_file: Path, member: zipfile.ZipInfo, target: Path) -> int:
    """Writes a member out and returns its lines; isal does it twice as fast as zipfile's zlib."""
    length, crc, lines, last = 0, 0, 0, b""
    inflater = isal_zlib.decompressobj(wbits=-15)
    with zip_file.open("rb") as stream, target.open("wb") as out:
        try:
            for raw in _raw_chunks(stream, zip_file, member):
                chunk = raw
                if member.compress_type == zipfile.ZIP_DEFLATED:
                    chunk = inflater.decompress(raw)
                elif member.compress_type != zipfile.ZIP_STORED:
                    raise ExtractError(
                        f"{zip_file.name}: {member.filename}: unknown compression;"
                        " only deflate and stored are read"
                    )
                out.write(chunk)
                length += len(chunk)
                crc = isal_zlib.crc32(chunk, crc)
                lines += chunk.count(b"\n")
                last = chunk[-1:] or last
        except _InflateError as error:
            raise ExtractError(
                f"{zip_file.name}: {member.filename}: {error}; fetch the ZIP again"
            ) from None
    if length != member.file_size or crc != member.CRC:
        raise ExtractError(
            f"{zip_file.name}: {member.filename}: damaged (length or CRC); fetch the ZIP again"
        )
    return lines + (last not in (b"", b"\n"))


def _check_header(
    zip_file: Path, member: str, target: Path, table: Table, operation: Operation
) -> None:
    """Compares by name, because DuckDB's reader maps columns by position."""
    with target.open("rb") as stream:
        line = stream.readline(4096)
    try:
        found = next(csv.reader([line.decode("utf-8-sig").strip("\r\n")]), [])
    except (UnicodeDecodeError, csv.Error):
        found = []
    columns = table.columns[:1] if operation == "delete" else table.columns
    expected = [column.csv_name for column in columns]
    if found != expected:
        raise ExtractError(
            f"{zip_file.name}: {member}: line 1: expected the header {','.join(expected)},"
            f" found {line[:80]!r}; see whether KBO changed the format"
        )


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ExtractError(f"{file}: {error.strerror or error}; see whether it is there") from None
