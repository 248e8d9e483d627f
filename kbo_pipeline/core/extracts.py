"""Extracts: their keys, and what their `meta.csv` says. No network, no database."""

import csv
import datetime
import functools
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from kbo_pipeline.archives import Archive, open_archive
from kbo_pipeline.core.errors import ExtractError

ExtractType = Literal["full", "update"]
Operation = Literal["delete", "insert"]

_KEY = re.compile(r"(\d{4,9})-(full|update)")
_FILE_NAME = re.compile(
    r"KboOpenData_(?P<number>\d{4,9})_(?P<date>\d{4}_\d{2}(_\d{2})?)_(?P<type>Full|Update)\.zip",
    re.ASCII | re.IGNORECASE,
)
_DATE = re.compile(r"\d{2}-\d{2}-\d{4}", re.ASCII)
_TIMESTAMP = re.compile(r"\d{2}-\d{2}-\d{4} \d{2}:\d{2}:\d{2}", re.ASCII)
_MAX_META = 1 << 16
_LARGE = 1 << 24  # bytes of a ZIP that takes long to hash
_DAYS_AHEAD = 2  # that a snapshot date may have: clocks differ, and KBO's data does too


@functools.total_ordering
@dataclass(frozen=True, slots=True)
class ExtractKey:
    """Names one extract; as text `0141-update`, the key of its partition.

    The order is that of importing: by number, and of one number the Update first. It costs less
    than the Full, which leads to the same state.
    """

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

    def __lt__(self, other: "ExtractKey") -> bool:
        return (self.number, self.type == "full") < (other.number, other.type == "full")

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
                f"SnapshotDate {snapshot_date:%d-%m-%Y} is in the future; see the clock here"
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


def zips_in(directory: Path) -> list[tuple[ExtractKey, Path]]:
    """The ZIPs in a directory that are named as KBO names them, in whichever case, by name.

    Args:
        directory: need not be there.
    """
    if not directory.is_dir():
        return []
    named = ((key_in_file_name(file.name), file) for file in sorted(directory.iterdir()))
    return [(key, file) for key, file in named if key is not None]


def odd_day(extract: Extract) -> str | None:
    """What is odd in the day in a ZIP's name; None when nothing is, or the name is not KBO's.

    KBO names a ZIP after the day, or formerly the month, on which it published it. That is the day
    on which it was made, or the next; over a weekend it can be later.
    """
    match = _FILE_NAME.fullmatch(extract.source_file)
    if match is None:
        return None
    named, day = match["date"], extract.timestamp.date()
    form = "%Y_%m_%d" if len(named) > len("yyyy_mm") else "%Y_%m"
    near = (day + datetime.timedelta(days=shift) for shift in (-1, 0, 1))
    if named in {f"{other:{form}}" for other in near}:
        return None
    return f"made on {day:%d-%m-%Y}, as meta.csv says; the file name says {named}"


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
    return _parse_meta(open_archive(zip_file))


def _parse_meta(archive: Archive) -> Mapping[str, str]:
    zip_file, member = archive.file, archive.members.get("meta.csv")
    if member is None:
        raise ExtractError(f"{zip_file.name}: no meta.csv in it; this is no KBO extract")
    if member.length > _MAX_META:
        raise ExtractError(f"{zip_file.name}: meta.csv: too long; fetch the ZIP again")
    try:
        text = b"".join(archive.read(member)).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))[1:]
        if not all(len(row) == len(("Variable", "Value")) for row in rows):
            raise ValueError("a line without exactly two fields")
        values = dict(rows)
        if len(values) != len(rows):
            raise ValueError("a variable twice")
    except (ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
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
        reason = " ".join(str(wrong).split())
        raise ExtractError(f"{zip_file.name}: meta.csv: {reason}; fetch the ZIP again") from None


def _sha256(file: Path) -> str:
    try:
        found = file.stat()
        if found.st_size < _LARGE:
            return _hashed(file)
        # Whatever changes the file later shows: hashing took longer than a tick of its clock.
        times = (found.st_mtime_ns, found.st_ctime_ns)
        return _hashed_once(file, (found.st_dev, found.st_ino, found.st_size, *times))
    except OSError as error:
        raise ExtractError(f"{file}: {error.strerror or error}; see whether it is there") from None


@functools.lru_cache(maxsize=8)
def _hashed_once(file: Path, state: tuple[int, ...]) -> str:
    """The hash of a file in a state: the steps of an import ask for it one after the other."""
    return _hashed(file)


def _hashed(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
