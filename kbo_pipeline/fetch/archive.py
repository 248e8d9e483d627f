"""ZIPs from outside: checked as a whole, inflated; which extract one is, by its `meta.csv`.

zipfile reads the directory; it accepts bytes before, between and after the parts, two members of
one name, overlapping ones, and believes sizes. So that no two programs can see different things in
one file, each byte of it has to belong to exactly one part (APPNOTE 4.3.6). A folder around all CSV
files, and what a Mac adds when somebody packs them again, is passed over. No DuckDB.
"""

import csv
import datetime
import functools
import hashlib
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from isal import igzip_lib, isal_zlib

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import Extract, ExtractKey, key_in_file_name
from kbo_pipeline.core.text import one_line

MAX_MEMBERS = 64
MAX_BYTES = 8 << 30
"""What all members may come to, inflated; a Full of KBO comes to 2.2 GB."""

MAX_RATIO = 250
"""How many times its compressed size a member over 1 MiB may have; KBO's have 5 to 20 times."""

CHUNK = 1 << 20

_MAX_DIRECTORY = 1 << 20  # bytes: MAX_MEMBERS entries with long names
_END, _END_64, _LOCATOR = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_END_FIELDS, _END_64_FIELDS = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q")
_LOCATOR_FIELDS, _LOCAL_FIELDS = struct.Struct("<4sLQL"), struct.Struct("<4s5H3L2H")
_EMPTY_DEFLATED = 5  # bytes: two, or with a stored block five
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_STREAMED = 0x8  # sizes and CRC come after the data
_UTF8 = 0x800
_READ = 0x6 | _STREAMED | _UTF8  # and how hard it was compressed
_IN_ZIP64 = 0xFFFF_FFFF
_UNREADABLE = (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, zlib.error)
_InflateError = cast(type[Exception], isal_zlib.error)  # its stub says it is an instance


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a ZIP.

    Attributes:
        name: as the ZIP says it.
        start: offset of its compressed bytes.
        compressed: their number.
        length: bytes that it has to come to.
        crc: of these bytes.
        is_deflated: else it is stored as it is.
    """

    name: str
    start: int
    compressed: int
    length: int
    crc: int
    is_deflated: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """A ZIP whose directory is sound.

    Attributes:
        file: where it lies.
        members: by name in lower case, without the one folder that the CSV files may lie in; the
            name of a member beside that folder begins with a slash. Folders themselves, and what a
            Mac adds, are left out.
    """

    file: Path
    members: Mapping[str, Member]

    def read(self, member: Member) -> Iterator[bytes]:
        """The bytes of a member, in chunks of at most 1 MiB, each but the last a multiple of 64.

        Raises:
            ExtractError: it is damaged, or is not as long as it says.
        """
        try:
            yield from _whole_chunks(_inflated(self.file, member))
        except (*_UNREADABLE, _InflateError) as error:
            raise _refused(self.file, f"{member.name}: {error}") from None


def open_archive(file: Path) -> Archive:
    """Reads and checks the directory of a ZIP; unpacks nothing, keeps nothing open.

    Raises:
        ExtractError: no such file, no sound ZIP, or one that is not to be unpacked.
    """
    if not file.is_file():
        if file.is_dir():
            raise ExtractError(f"{file}: a directory; name the ZIPs in it: {file}/*.zip")
        raise ExtractError(f"{file}: no such file")
    try:
        with file.open("rb") as stream:
            directory_at = _find_directory(file, stream)
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
            _check_entries(file, entries)
            members = _by_name(file, _lay_out(file, stream, entries, directory_at))
    except _UNREADABLE as error:
        raise _refused(file, f"not a sound ZIP ({error})") from None
    return Archive(file, members)


def _find_directory(file: Path, stream: IO[bytes]) -> int:
    """The offset of the central directory, which must end where the end record begins."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _END_FIELDS.size - 0xFFFF))
    tail = stream.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_FIELDS.size:
        raise _refused(file, "not a sound ZIP (its end is missing)")
    end = size - len(tail) + at
    _, disk, first_disk, _, count, length, offset, comment = _END_FIELDS.unpack_from(tail, at)
    if end + _END_FIELDS.size + comment != size:
        raise _refused(file, "bytes after its end")
    stream.seek(max(0, end - _LOCATOR_FIELDS.size))
    locator = stream.read(_LOCATOR_FIELDS.size)
    if locator.startswith(_LOCATOR) and len(locator) == _LOCATOR_FIELDS.size:
        end = min(size, _LOCATOR_FIELDS.unpack(locator)[2])
        stream.seek(end)
        record = stream.read(_END_64_FIELDS.size)
        if not record.startswith(_END_64) or len(record) < _END_64_FIELDS.size:
            raise _refused(file, "its ZIP64 end is damaged")
        _, rest, _, _, disk, first_disk, _, count, length, offset = _END_64_FIELDS.unpack(record)
        if rest != _END_64_FIELDS.size - 12 or stream.tell() + _LOCATOR_FIELDS.size != (
            size - _END_FIELDS.size - comment
        ):
            raise _refused(file, "bytes that belong to no part of it, at its ZIP64 end")
    if disk or first_disk:
        raise _refused(file, "it is one of several parts")
    if count > MAX_MEMBERS:
        raise _refused(file, f"{count} members; {MAX_MEMBERS} at most are read")
    if length > _MAX_DIRECTORY:
        raise _refused(
            file, f"a directory of {length:,} bytes; {_MAX_DIRECTORY:,} at most are read"
        )
    if offset + length != end:
        raise _refused(file, "bytes before its start, or between its directory and its end")
    return int(offset)


def _check_entries(file: Path, entries: list[zipfile.ZipInfo]) -> None:
    """What can be refused by the central directory alone."""
    seen = set()
    for entry in entries:
        name = entry.orig_filename
        shown = ascii(name[:80])
        path = _path(name)
        drive = len(name) > 1 and name[1] == ":"
        if not name or not name.isprintable():
            raise _refused(file, f"member {shown}: a name that cannot be shown")
        if drive or path.is_absolute() or ".." in path.parts:
            raise _refused(file, f"member {shown}: a name that leads elsewhere")
        if str(path).lower() in seen:
            raise _refused(file, f"member {str(path).lower()} is in it twice")
        seen.add(str(path).lower())
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFDIR if _is_folder(name) else stat.S_IFREG):
            raise _refused(file, f"member {shown}: neither a plain file nor a folder")
        if _is_folder(name) and (entry.file_size or entry.compress_size > _EMPTY_DEFLATED):
            raise _refused(file, f"member {shown}: a folder that has content itself")
        if entry.flag_bits & _ENCRYPTED:
            raise _refused(file, f"member {shown}: encrypted")
        if entry.flag_bits & ~_READ:
            raise _refused(file, f"member {shown}: in a form that is not read")
        if entry.compress_type not in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
            raise _refused(file, f"{name}: unknown compression; only deflate and stored are read")
        if entry.file_size > max(CHUNK, MAX_RATIO * entry.compress_size):
            raise _refused(
                file,
                f"member {shown}: {entry.file_size:,} bytes out of {entry.compress_size:,}:"
                f" more than {MAX_RATIO} times as much",
            )
    total = sum(entry.file_size for entry in entries)
    if total > MAX_BYTES:
        raise _refused(file, f"{total:,} bytes when unpacked; {MAX_BYTES:,} at most are read")


def _lay_out(
    file: Path, stream: IO[bytes], entries: list[zipfile.ZipInfo], directory_at: int
) -> dict[str, Member]:
    """Walks through the file: the members must follow each other without a gap or an overlap."""
    members, at = {}, 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset != at:
            raise _refused(
                file, f"{entry.filename}: it overlaps another member, or bytes lie before it"
            )
        stream.seek(at)
        header = stream.read(_LOCAL_FIELDS.size)
        if len(header) < _LOCAL_FIELDS.size or not header.startswith(b"PK\3\4"):
            raise _refused(file, f"{entry.filename}: no local header")
        _, _, flags, method, _, _, crc, compressed, length, name_length, extra_length = (
            _LOCAL_FIELDS.unpack(header)
        )
        raw_name = stream.read(name_length)
        name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437")
        sizes = [(entry.CRC, crc), (entry.compress_size, compressed), (entry.file_size, length)]
        agree = (
            name == entry.orig_filename
            and method == entry.compress_type
            and (flags ^ entry.flag_bits) & ~(_READ ^ _STREAMED) == 0
            and (flags & _STREAMED or all(local in (own, _IN_ZIP64) for own, local in sizes))
        )
        if not agree:
            raise _refused(file, f"{entry.filename}: its two headers differ")
        start = at + _LOCAL_FIELDS.size + name_length + extra_length
        at = start + entry.compress_size
        if flags & _STREAMED:
            at += _descriptor_length(file, stream, entry, at)
        if _is_passed_over(entry.orig_filename):
            continue
        members[str(_path(entry.orig_filename)).lower()] = Member(
            entry.filename,
            start,
            entry.compress_size,
            entry.file_size,
            entry.CRC,
            entry.compress_type == zipfile.ZIP_DEFLATED,
        )
    if at != directory_at:
        raise _refused(file, "bytes that belong to no member, or a member that is too long")
    return members


def _path(name: str) -> PurePosixPath:
    """The name without what one program writes and another does not: `./`, back-slashes."""
    return PurePosixPath(name.replace("\\", "/"))


def _is_folder(name: str) -> bool:
    return name.endswith(("/", "\\"))


def _is_passed_over(name: str) -> bool:
    """Folders themselves, and what a Mac packs beside people's files."""
    *folders, last = (part.lower() for part in _path(name).parts or (".",))
    is_of_mac = "__macosx" in folders or last == ".ds_store" or last.startswith("._")
    return _is_folder(name) or is_of_mac


def _by_name(file: Path, members: Mapping[str, Member]) -> dict[str, Member]:
    """The members without the one folder that the CSV files lie in, if they lie in one."""
    folders = sorted({path.rpartition("/")[0] for path in members if path.endswith(".csv")})
    if len(folders) > 1:
        places = " and ".join(ascii(f[:80]) if f else "in none" for f in folders[:3])
        raise _refused(file, f"its CSV files lie in {len(folders)} folders ({places}), not in one")
    if not folders or not folders[0]:
        return dict(members)
    inside = f"{folders[0]}/"
    return {
        path.removeprefix(inside) if path.startswith(inside) else f"/{path}": member
        for path, member in members.items()
    }


def _descriptor_length(file: Path, stream: IO[bytes], entry: zipfile.ZipInfo, at: int) -> int:
    """The length of the record after streamed data, in whichever of its four forms it is there."""
    stream.seek(at)
    record = stream.read(24)
    for sizes in ("<LQQ", "<LLL"):
        for signature in (b"PK\7\x08", b""):
            try:
                fields = struct.pack(sizes, entry.CRC, entry.compress_size, entry.file_size)
            except struct.error:  # too long for 32 bits
                continue
            if record.startswith(signature + fields):
                return len(signature + fields)
    raise _refused(file, f"{entry.filename}: no record of its length after it")


def _inflated(file: Path, member: Member) -> Iterator[bytes]:
    """What comes out, never more than announced; isal takes half the time of zlib."""
    length, crc = 0, 0
    with file.open("rb") as stream:
        stream.seek(member.start)
        chunks = _inflate(stream, member) if member.is_deflated else _stored(stream, member)
        for chunk in chunks:
            length += len(chunk)
            if length > member.length:
                break
            crc = isal_zlib.crc32(chunk, crc)
            yield chunk
    if length != member.length or crc != member.crc:
        raise ValueError("damaged (length or CRC)")


def _stored(stream: IO[bytes], member: Member) -> Iterator[bytes]:
    left = member.compressed
    while left > 0 and (chunk := stream.read(min(left, CHUNK))):
        left -= len(chunk)
        yield chunk


def _inflate(stream: IO[bytes], member: Member) -> Iterator[bytes]:
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
    left = member.compressed
    while not inflater.eof:
        raw = b""
        if inflater.needs_input:
            raw = stream.read(min(left, CHUNK))
            left -= len(raw)
            if not raw:
                raise ValueError("damaged: its data ends too early")
        yield inflater.decompress(raw, CHUNK)
    if left or inflater.unused_data:
        raise ValueError("damaged: bytes after the end of its data")


def _whole_chunks(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, in pieces whose lengths are multiples of 64 but for the last."""
    rest = b""
    for chunk in chunks:
        joined = rest + chunk if rest else chunk
        whole = len(joined) - len(joined) % 64
        if whole:
            yield joined[:whole] if whole < len(joined) else joined
        rest = joined[whole:]
    if rest:
        yield rest


def _refused(file: Path, reason: str) -> ExtractError:
    return ExtractError(f"{file.name}: {one_line(reason)}; fetch it again")


_DATE = re.compile(r"\d{2}-\d{2}-\d{4}", re.ASCII)
_TIMESTAMP = re.compile(r"\d{2}-\d{2}-\d{4} \d{2}:\d{2}:\d{2}", re.ASCII)
_MAX_META = 1 << 16
_LARGE = 1 << 24  # bytes of a ZIP that takes long to hash
_DAYS_AHEAD = 2  # that a snapshot date may have: clocks differ, and KBO's data does too


def read_key(zip_file: Path) -> ExtractKey:
    """Reads the key of a ZIP; takes no time, whatever its size.

    Raises:
        ExtractError: no ZIP, no sound `meta.csv`, or a file name that says another extract.
    """
    return _key_in(zip_file, _read_meta(zip_file))


def read_extract(zip_file: Path) -> Extract:
    """Reads which extract a ZIP is.

    Raises:
        ExtractError: no ZIP, no sound `meta.csv`, or a file name that says another extract.
    """
    meta = _read_meta(zip_file)
    key = _key_in(zip_file, meta)
    with _meta_errors(zip_file):
        snapshot_date = _snapshot_date(meta)
        timestamp = _moment(meta, "ExtractTimestamp", _TIMESTAMP, "%d-%m-%Y %H:%M:%S")
        version = meta["Version"]
        if snapshot_date > datetime.date.today() + datetime.timedelta(days=_DAYS_AHEAD):
            raise ValueError(
                f"SnapshotDate {snapshot_date:%d-%m-%Y} is in the future; check the clock of this"
                " machine"
            )
    return Extract(key, snapshot_date, timestamp, version, zip_file.name, _sha256(zip_file))


def read_snapshot_date(zip_file: Path) -> datetime.date:
    """Reads of which day the data of a ZIP is; takes no time, whatever its size.

    Raises:
        ExtractError: no ZIP, or no sound `meta.csv`.
    """
    meta = _read_meta(zip_file)
    with _meta_errors(zip_file):
        return _snapshot_date(meta)


def _snapshot_date(meta: Mapping[str, str]) -> datetime.date:
    return _moment(meta, "SnapshotDate", _DATE, "%d-%m-%Y").date()


def damage(file: Path) -> str | None:
    """What is wrong with a ZIP, reading every member against its CRC; None for a sound one."""
    try:
        archive = open_archive(file)
        for member in archive.members.values():
            for _ in archive.read(member):
                pass
    except ExtractError as error:
        return str(error).removeprefix(f"{file.name}: ").removesuffix("; fetch it again")
    return None


def _read_meta(zip_file: Path) -> Mapping[str, str]:
    archive = open_archive(zip_file)
    member = archive.members.get("meta.csv")
    if member is None:
        raise ExtractError(f"{zip_file.name}: no meta.csv in it; this is not a KBO extract")
    if member.length > _MAX_META:
        raise ExtractError(f"{zip_file.name}: meta.csv: too long; fetch the ZIP again")
    try:
        text = b"".join(archive.read(member)).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))[1:]
        if not all(len(row) == len(("Variable", "Value")) for row in rows):
            raise ValueError("a line without exactly two fields")
        values = dict(rows)
        if len(values) != len(rows):
            raise ValueError("a variable is there twice")
    except (ValueError, csv.Error) as error:
        reason = one_line(error)
        raise ExtractError(f"{zip_file.name}: meta.csv: {reason}; fetch the ZIP again") from None
    return values


def _key_in(zip_file: Path, meta: Mapping[str, str]) -> ExtractKey:
    with _meta_errors(zip_file):
        number = meta["ExtractNumber"].lstrip("0")
        key = ExtractKey.parse(f"{number:0>4}-{meta['ExtractType'].lower()}")
    named = key_in_file_name(zip_file.name)
    if named is not None and named != key:
        raise ExtractError(
            f"{zip_file.name}: meta.csv says {key}, the file name says {named}; fetch the ZIP again"
        )
    return key


def _moment(
    meta: Mapping[str, str], name: str, pattern: re.Pattern[str], form: str
) -> datetime.datetime:
    text = meta[name]
    if pattern.fullmatch(text):
        with suppress(ValueError):  # there is no such day
            return datetime.datetime.strptime(text, form)
    raise ValueError(f"{name} {text[:40]!r} is not as KBO writes it, or no such day")


@contextmanager
def _meta_errors(zip_file: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as missing:
        raise ExtractError(
            f"{zip_file.name}: meta.csv has no {missing}; fetch the ZIP again"
        ) from None
    except (ValueError, OverflowError, ExtractError) as wrong:
        reason = one_line(wrong)
        raise ExtractError(f"{zip_file.name}: meta.csv: {reason}; fetch the ZIP again") from None


def _sha256(file: Path) -> str:
    try:
        state = file.stat()
        if state.st_size < _LARGE:
            return _hashed(file)
        # Whatever changes the file later shows: hashing took longer than a tick of its clock.
        times = (state.st_mtime_ns, state.st_ctime_ns)
        return _hashed_once(file, (state.st_dev, state.st_ino, state.st_size, *times))
    except OSError as error:
        raise ExtractError(f"{file}: {error.strerror or error}; see whether it is there") from None


@functools.lru_cache(maxsize=8)
def _hashed_once(file: Path, state: tuple[int, ...]) -> str:
    """The hash of a file in a state: the steps of an import ask for it one after the other."""
    return _hashed(file)


def _hashed(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
