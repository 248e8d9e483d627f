"""Disk space: what an import will need, before it begins.

The factors were measured with made-up extracts (a Full of 20,000 enterprises, an Update that
touches 15% of them), the highest use of each directory while it was at work, and rounded up.
"""

import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kbo_pipeline.core.errors import ExtractError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import megabytes

_UNPACKED_AND_STAGED = {"full": 2.0, "update": 4.0}
"""Of the length of the CSV files; measured 1.65 and 3.6 (a DuckDB file has its least size)."""

_STAGED = {"full": 0.5, "update": 2.0}
"""The staging file alone; measured 0.37 and 1.6."""

_GROWTH = {"full": 0.5, "update": 2.0}
"""What the register and its log grow by; measured 0.27 and 1.45."""

_SPARE = 32 << 20
"""For PostgreSQL's log, logs, and what else is on the disk."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The space on one disk.

    Attributes:
        directory: one that is on it.
        needed: bytes, with some to spare.
        free: bytes.
    """

    directory: Path
    needed: int
    free: int

    @property
    def missing(self) -> int:
        """Bytes that must be freed; zero or less when there is enough."""
        return self.needed - self.free


def check_space_to_import(settings: Settings, key: ExtractKey, zip_file: Path) -> None:
    """Makes sure that there is room to stage, apply and publish an extract.

    Raises:
        StorageError: there is not; names the directory, what is needed and what is free.
        ExtractError: the ZIP cannot be read.
    """
    _check(str(key), space_to_import(settings, key, zip_file))


def check_space_to_keep(name: str, directory: Path, length: int) -> None:
    """Makes sure that a file of this length fits into a directory.

    Raises:
        StorageError: it does not; names the directory, what is needed and what is free.
    """
    _check(name, _spaces({directory: length}))


def check_space_to_export(directory: Path, database: Place, temporary_dir: Path) -> None:
    """Makes sure that there is room to export a published register, and to sort it meanwhile.

    Raises:
        StorageError: there is not; names the directory, what is needed and what is free.
    """
    length = database.length  # with its whole history, it is larger than what comes out
    if length is None:
        return  # how large the export will be is unknown
    needs = {directory: length, temporary_dir: 0}
    needs[temporary_dir] += length
    _check(str(directory), _spaces(needs))


def check_space_to_verify(zip_file: Path, directory: Path) -> None:
    """Makes sure that there is room to stage a Full in a directory, beside everything else.

    Raises:
        StorageError: there is not; names the directory, what is needed and what is free.
        ExtractError: the ZIP cannot be read.
    """
    needed = int(_UNPACKED_AND_STAGED["full"] * _unpacked(zip_file))
    _check(zip_file.name, _spaces({directory: needed}))


def space_to_import(settings: Settings, key: ExtractKey, zip_file: Path) -> list[DiskSpace]:
    """What staging, applying and publishing an extract needs, disk by disk, and what is free.

    Raises:
        ExtractError: the ZIP cannot be read.
    """
    unpacked = _unpacked(zip_file)
    growth = int(_GROWTH[key.type] * unpacked)
    staged = int(_STAGED[key.type] * unpacked)
    # Two moments, of which the worse counts: the CSV files are gone before the register grows.
    staging = {settings.staging_dir: int(_UNPACKED_AND_STAGED[key.type] * unpacked)}
    publishing = {settings.staging_dir: staged, settings.work_dir: growth}
    directory = settings.database.directory
    if directory is not None:
        copied = settings.register.length if settings.register.may_exist else None
        publishing[directory] = publishing.get(directory, 0) + growth + (copied or 0)
    return _spaces(staging) + _spaces(publishing)


def space_now(settings: Settings) -> list[DiskSpace]:
    """What is free on each disk that is written to, where nothing but the spare is needed."""
    directories = (settings.data_dir, settings.staging_dir, settings.downloads_dir)
    written = settings.database.directory or settings.work_dir
    return _spaces(dict.fromkeys((*directories, settings.work_dir, written), 0))


def _unpacked(zip_file: Path) -> int:
    try:
        with zipfile.ZipFile(zip_file) as archive:
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise ExtractError(f"{zip_file.name}: not a sound ZIP ({error}); fetch it again") from None


def _spaces(needs: Mapping[Path, int]) -> list[DiskSpace]:
    """What is needed and free, added up where directories share a file system."""
    places: dict[int, list[tuple[Path, int]]] = {}
    for directory, needed in needs.items():
        there = existing(directory)
        places.setdefault(os.stat(there).st_dev, []).append((there, needed))
    usages = {device: shutil.disk_usage(shares[0][0]) for device, shares in places.items()}
    return [
        DiskSpace(shares[0][0], sum(share for _, share in shares) + _SPARE, usages[device].free)
        for device, shares in places.items()
        if usages[device].total > 0  # /proc and the like: what is made there says why it cannot be
    ]


def _check(what: str, needs: Iterable[DiskSpace]) -> None:
    for space in needs:
        if space.missing > 0:
            raise StorageError(
                f"{what}: needs about {megabytes(space.needed)} on the disk of {space.directory},"
                f" where {megabytes(space.free)} are free; free {megabytes(space.missing)} more, or"
                " move KBO_DATA_DIR, then retry"
            )


def existing(directory: Path) -> Path:
    """The directory, or the nearest above it that is there."""
    while not os.path.lexists(directory):
        directory = directory.parent
    return directory
