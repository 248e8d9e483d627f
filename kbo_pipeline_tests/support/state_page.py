"""docs/state.md: which files and directories it names, and which of a data directory it omits."""

import re
from collections.abc import Iterator
from pathlib import Path

from kbo_pipeline_tests.support import REPOSITORY

PAGE = REPOSITORY / "docs" / "state.md"
_LOOKED_INTO = ("dagster_home", "inbox", "postgres", "work")
"""Directories of which the page names what is in them."""


def entries() -> list[str]:
    """What the first columns of the page's tables name."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def unnamed(data_dir: Path) -> list[str]:
    """The files and directories of a data directory that the page should name and does not."""
    found = (str(path.relative_to(data_dir)) for path in _listed(data_dir))
    named = [_pattern(entry) for entry in entries()]
    return [path for path in found if not any(pattern.match(f"{path}/") for pattern in named)]


def _listed(data_dir: Path) -> Iterator[Path]:
    yield from sorted(data_dir.iterdir())
    for name in _LOOKED_INTO:
        if (data_dir / name).is_dir():
            yield from sorted((data_dir / name).iterdir())


def _pattern(entry: str) -> re.Pattern[str]:
    """Matches a named path, what is below it, and what is above it."""
    parts = [re.sub(r"<[^>]+>", "[^/]+", re.escape(part)) for part in entry.split("/")]
    above = [f"{'/'.join(parts[:depth])}/$" for depth in range(1, len(parts))]
    return re.compile("|".join((*above, f"{'/'.join(parts)}(-[^/]+)?/")))
