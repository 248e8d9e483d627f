"""What `kbo doctor` finds lying about: unfinished files, what waits in the inbox. No Dagster."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.extracts import key_or_none
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import listed, printable
from kbo_pipeline.fetch.inbox import Inbox
from kbo_pipeline.operate.processes.postgres import moved_aside
from kbo_pipeline.operate.repair.disk_checks import holder_if_any, start_process
from kbo_pipeline.operate.repair.findings import Finding
from kbo_pipeline.read.published import published_state_of

_OLD_SECONDS = 86_400.0  # no import and no download takes so long
_MOST_NAMED = 3


def check_leftovers(settings: Settings) -> Iterator[Finding]:
    """Whether processes that died have left files that nobody needs."""
    old = [path for path in _unfinished(settings) if _age(path) > _OLD_SECONDS]
    if old:
        yield Finding(
            "warning",
            "leftovers",
            f"unfinished for more than a day: {_named(old)}",
            "delete them; a download that is wanted still begins anew",
        )
    aside = sorted((settings.work_dir / "damaged").glob("*.duckdb"))
    aside += moved_aside(settings.postgres_dir)
    if aside:
        yield Finding(
            "warning",
            "leftovers",
            f"put aside when they were replaced by sound ones: {', '.join(map(str, aside))}",
            "delete them when nobody wants to look into what happened",
        )
    try:
        newest = published_state_of(settings.database).newest
    except RegisterError:
        return  # told already
    staged = [
        file
        for file in sorted(settings.staging_dir.glob("*.duckdb"))
        if (key := key_or_none(file.stem)) is not None
        and newest is not None
        and key.number <= newest.number
        and holder_if_any(settings.staging_dir / f"{key}.lock") is None
    ]
    if staged:
        yield Finding(
            "warning",
            "leftovers",
            f"staging files of what is published: {_named(staged)}",
            "the next publication removes them; or delete them",
        )


def check_inbox(settings: Settings) -> Iterator[Finding]:
    """Whether something lies in the inbox that waits for a person."""
    inbox = Inbox(settings.inbox_dir)
    rejected = _files(inbox.rejected_dir, is_zip=True)
    if rejected:
        yield Finding(
            "warning",
            "inbox",
            f"{len(rejected)} rejected: {_named(rejected)}",
            f"the .txt beside each in {inbox.rejected_dir} says why; delete them then",
        )
    foreign = [f for f in _files(inbox.directory, is_zip=False) if _age(f) > _OLD_SECONDS]
    if foreign:
        yield Finding(
            "warning",
            "inbox",
            f"not ending in .zip, so that nobody takes them: {_named(foreign)}",
            "rename or delete them",
        )
    waiting = [*_files(inbox.directory, is_zip=True), *_files(inbox.processing_dir, is_zip=True)]
    if waiting and start_process(settings) is None:
        yield Finding(
            "warning",
            "inbox",
            f"{len(waiting)} ZIPs wait: {_named(waiting)}",
            "kbo start imports them",
        )


def _unfinished(settings: Settings) -> Iterator[Path]:
    for directory in (settings.downloads_dir, settings.staging_dir):
        yield from sorted(directory.glob("*.part"))
    yield from sorted(settings.staging_dir.glob("*.unpacked"))
    yield from sorted(settings.reports_dir.glob("*/*.part"))
    yield from sorted(settings.work_dir.rglob("*.part"))
    if isinstance(settings.database, Path):
        yield from sorted(settings.database.parent.glob(f"{settings.database.name}.part"))


def _files(directory: Path, *, is_zip: bool) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(
        file
        for file in directory.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and file.name.lower().endswith(".zip") == is_zip
    )


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _named(paths: Sequence[Path]) -> str:
    return listed((printable(path.name) for path in paths), _MOST_NAMED)
