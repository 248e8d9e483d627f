"""Which extract a ZIP is, and of which day: what its `meta.csv` says. No DuckDB."""

import csv
import datetime
import functools
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import Extract, ExtractKey, key_in_file_name
from kbo_pipeline.core.text import one_line
from kbo_pipeline.fetch.archive import Archive, open_archive

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
