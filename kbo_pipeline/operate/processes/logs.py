"""Logs of the processes of `kbo start`: kept to a size, and for some days. No Dagster.

A log that has become large is copied to a file of its own, packed, and emptied; whoever writes it
holds it open all the while, to append. Both limits hold for what was put aside, too.
"""

import gzip
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kbo_pipeline.core.settings import Settings

MAX_BYTES = 10_000_000
"""A log that is larger is put aside."""

MOST_KEPT = 20
"""Files of one log that were put aside and stay, the newest; about 10 MB each when unpacked."""

_DAY = 86_400.0
_OUTPUTS = (".err", ".out", ".complete", ".partial")


def alert_log(settings: Settings) -> Path:
    """Where alerts are written, a line each."""
    return log_file(settings, "alerts")


def log_file(settings: Settings, name: str) -> Path:
    """The log of a process of `kbo start`."""
    return settings.work_dir / "logs" / f"{name}.log"


def put_aside(file: Path) -> Path | None:
    """Empties a log that has become large; returns where its lines are now.

    A line that is written in the instant between reading the last one and emptying is lost.

    Raises:
        OSError: it cannot be copied; then it stays as it is.
    """
    if not file.exists() or file.stat().st_size <= MAX_BYTES:
        return None
    stamp = time.strftime("%Y-%m-%dT%H%M%S", time.gmtime())
    target = file.with_name(f"{file.name}.{stamp}.gz")
    unfinished = target.with_suffix(".part")
    try:
        with file.open("rb") as source:
            with gzip.open(unfinished, "wb", compresslevel=1) as packed:
                shutil.copyfileobj(source, packed)
            while came_meanwhile := source.read():
                with gzip.open(unfinished, "ab") as packed:
                    packed.write(came_meanwhile)
            shutil.copymode(file, unfinished)
            os.truncate(file, 0)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def remove_old(file: Path, days: int, now: float) -> list[Path]:
    """Removes what was put aside of a log and is too old, or too much; returns which files.

    Args:
        file: the log.
        days: how long they stay.
        now: seconds of the epoch.
    """
    aside = sorted(file.parent.glob(f"{file.name}.*.gz"), reverse=True)
    return _remove(
        other
        for place, other in enumerate(aside)
        if place >= MOST_KEPT or _is_older(other, now - days * _DAY)
    )


def remove_old_outputs(settings: Settings, now: float) -> list[Path]:
    """Removes what runs and sensors have printed long ago; returns which files.

    Dagster keeps it for ever, a file each. In a `DAGSTER_HOME` of the user's own all of it stays.
    """
    home = settings.dagster_home
    if home != settings.data_dir / "dagster_home":
        return []
    latest = now - settings.keep_logs_days * _DAY
    removed = _remove(
        file
        for file in (home / "storage").rglob("*")
        if file.suffix in _OUTPUTS and _is_older(file, latest)
    )
    for file in removed:
        with suppress(OSError):  # another file is there, or another process was faster
            for directory in file.relative_to(home / "storage").parents[:-1]:
                (home / "storage" / directory).rmdir()
    return removed


def _is_older(file: Path, latest: float) -> bool:
    try:
        return file.stat().st_mtime < latest
    except FileNotFoundError:
        return False


def _remove(files: Iterable[Path]) -> list[Path]:
    removed = list(files)
    for file in removed:
        file.unlink(missing_ok=True)
    return removed
