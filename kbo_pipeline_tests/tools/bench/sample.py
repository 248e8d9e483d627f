"""The made-up extracts that are measured: made once, then kept."""

import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from kbo_pipeline.sample.extracts import Sample

WHOLE = 1_940_000
"""Enterprises of the real register, November 2025."""

_FIRST, _LAST = 140, 144
_DAY = 0.0008 * WHOLE
"""Entities that a usual day touches, times the enterprises: about 25,000 changed rows."""

_BIG = 0.22
"""Share that the biggest Update touches: 7 million changed rows of 47 million."""


@dataclass(frozen=True, slots=True)
class Extracts:
    """The ZIPs: a Full, a day's Update, one without changes, a big one, and a Full a day later."""

    full: Path
    day: Path
    nothing: Path
    big: Path
    later_full: Path


def facts(made: Extracts) -> list[tuple[str, int, int]]:
    """What each ZIP is called here, how many rows it has, and its bytes."""
    return [
        (field.name.replace("_", " "), _rows(file), file.stat().st_size)
        for field in fields(made)
        if isinstance(file := getattr(made, field.name), Path)
    ]


def _rows(file: Path) -> int:
    """Lines of all tables but `code`, without headers."""
    rows = 0
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name not in ("meta.csv", "code.csv"):
                with archive.open(name) as member:
                    rows += sum(
                        chunk.count(b"\n") for chunk in iter(partial(member.read, 1 << 20), b"")
                    )
                rows -= 1
    return rows


def extracts(directory: Path, enterprises: int) -> Extracts:
    """Returns the extracts of a register of a size; makes them when they are not there.

    Args:
        directory: where they are kept, each size in a directory of its own.
        enterprises: how many enterprises the first Full has.
    """
    day = _DAY / enterprises
    sample = Sample(
        enterprises=enterprises, seed=7, first_number=_FIRST, change_shares=(day, 0.0, _BIG, day)
    )
    place = directory / str(enterprises)
    made = place / "made"
    if not made.exists():
        print(f"making extracts of {enterprises:,} enterprises in {place}, once")
        place.mkdir(parents=True, exist_ok=True)
        writers = [(sample.write_full, n) for n in (_FIRST, _LAST)]
        writers += [(sample.write_update, n) for n in range(_FIRST + 1, _LAST)]
        with ProcessPoolExecutor() as pool:
            written = [pool.submit(write, place, number) for write, number in writers]
            names = [work.result().name for work in written]
        made.write_text("\n".join(sorted(names)))
    return Extracts(*(place / name for name in made.read_text().split()))
