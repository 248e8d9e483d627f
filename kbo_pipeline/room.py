"""Room on disk: what an import will need, before it begins. No Dagster.

The factors were measured with made-up extracts (a Full of 20,000 enterprises, an Update that
touches 15% of them), the highest use of each directory while it was at work, and rounded up.
"""

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from kbo_pipeline.errors import ExtractError, StorageError
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.settings import Settings

_UNPACKED_AND_STAGED = {"full": 2.0, "update": 4.0}
"""Of the length of the CSV files; measured 1.65 and 3.6 (a DuckDB file has its least size)."""

_STAGED = {"full": 0.5, "update": 2.0}
"""The staging file alone; measured 0.37 and 1.6."""

_GROWTH = {"full": 0.5, "update": 2.0}
"""What the register and its log grow by; measured 0.27 and 1.45."""

_SPARE = 32 << 20
"""For PostgreSQL's log, logs, and what else is on the disk."""


def check_room_to_import(settings: Settings, key: ExtractKey, zip_file: Path) -> None:
    """Makes sure that there is room to stage, apply and publish an extract.

    Raises:
        StorageError: there is not; names the directory, what is needed and what is free.
        ExtractError: the ZIP cannot be read.
    """
    try:
        with zipfile.ZipFile(zip_file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise ExtractError(f"{zip_file.name}: no sound ZIP ({error}); fetch it again") from None
    growth = int(_GROWTH[key.type] * unpacked)
    register = settings.register_file
    copy = (register.stat().st_size if register.exists() else 0) + growth
    staged = int(_STAGED[key.type] * unpacked)
    # Two moments, of which the worse counts: the CSV files are gone before the register grows.
    staging = {settings.staging_dir: int(_UNPACKED_AND_STAGED[key.type] * unpacked)}
    publishing = {settings.staging_dir: staged, settings.work_dir: growth}
    publishing[settings.database.parent] = publishing.get(settings.database.parent, 0) + copy
    for needs in (staging, publishing):
        _check(str(key), needs)


def check_room_to_keep(name: str, directory: Path, length: int) -> None:
    """Makes sure that a file of this length fits into a directory.

    Raises:
        StorageError: it does not; names the directory, what is needed and what is free.
    """
    _check(name, {directory: length})


def _check(what: str, needs: Mapping[Path, int]) -> None:
    """Compares needs with what is free, added up where directories share a file system."""
    places: dict[int, list[tuple[Path, int]]] = {}
    for directory, needed in needs.items():
        there = _existing(directory)
        places.setdefault(os.stat(there).st_dev, []).append((there, needed))
    for shares in places.values():
        needed = sum(share for _, share in shares) + _SPARE
        free = shutil.disk_usage(shares[0][0]).free
        if free < needed:
            raise StorageError(
                f"{what}: needs about {_megabytes(needed)} on the disk of {shares[0][0]}, where"
                f" {_megabytes(free)} are free; free {_megabytes(needed - free)} more, or move"
                " KBO_DATA_DIR, then retry"
            )


def _existing(directory: Path) -> Path:
    while not directory.exists():
        directory = directory.parent
    return directory


def _megabytes(length: int) -> str:
    return f"{length / 1e6:,.0f} MB"
