"""What `kbo doctor` looks at first: settings, directories, disks, both registers. No Dagster.

Nothing is changed; locks are held for an instant, to see whether somebody else holds them.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb

from kbo_pipeline.apply.register import register_lock
from kbo_pipeline.core.database import literal
from kbo_pipeline.core.disk_space import DiskSpace, existing, space_now, space_to_import
from kbo_pipeline.core.errors import ExtractError, KboError, RegisterError, StorageError
from kbo_pipeline.core.extracts import ExtractKey, zips_in
from kbo_pipeline.core.ledger import PublishedState
from kbo_pipeline.core.locks import exclusive_lock, holder, is_paused
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import counted, first_line, megabytes
from kbo_pipeline.operate.parts import ui_address
from kbo_pipeline.operate.processes.start import answers, start_lock
from kbo_pipeline.operate.repair.findings import Finding, found_error
from kbo_pipeline.publish.publish import has_views
from kbo_pipeline.read.published import published_state_of


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Whether the portal can be asked, and where all is."""
    yield Finding("ok", "settings", f"data in {settings.data_dir}, published {settings.database}")
    if not settings.has_account:
        yield Finding(
            "warning",
            "portal account",
            f"{settings.account_not_set}: not set, so the portal is not asked",
            f"set both, or put ZIPs into {settings.inbox_dir}",
        )


def check_directories(settings: Settings) -> Iterator[Finding]:
    """Whether files can be made in all directories, or where these will be."""
    bad = False
    for directory in dict.fromkeys(map(existing, _directories(settings))):
        try:
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            bad = True
            yield Finding(
                "error",
                "directories",
                f"{directory}: nothing can be written there ({error.strerror})",
                "see its permissions and its disk, or what lies in its place",
            )
    if not bad:
        yield Finding("ok", "directories", "all can be written to")


def check_disks(settings: Settings) -> Iterator[Finding]:
    """Whether the next import will have room, as large as the newest ZIPs that are kept."""
    newest: dict[str, tuple[ExtractKey, Path]] = {}
    for key, file in zips_in(settings.downloads_dir):
        if key.type not in newest or newest[key.type][0].number < key.number:
            newest[key.type] = (key, file)
    if not newest:
        yield from _too_small(space_now(settings), "error", "whatever comes next")
    bad = False
    for kind, (key, file) in sorted(newest.items()):
        try:
            rooms = space_to_import(settings, key, file)
        except ExtractError as error:
            yield found_error("downloads", error, "warning")
            continue
        # Updates come each day, a Full now and then.
        problems = list(
            _too_small(rooms, "error" if kind == "update" else "warning", f"one like {key}")
        )
        bad = bad or bool(problems)
        yield from problems
    if not bad:
        for room in space_now(settings):
            free = f"{megabytes(room.free)} are free on the disk of {room.directory}"
            yield Finding("ok", "disk", free)


def _too_small(rooms: Iterable[DiskSpace], severity: str, what: str) -> Iterator[Finding]:
    for room in rooms:
        if room.missing > 0:
            yield Finding(
                "error" if severity == "error" else "warning",
                "disk",
                f"{what} needs about {megabytes(room.needed)} on the disk of {room.directory},"
                f" where {megabytes(room.free)} are free",
                f"free {megabytes(room.missing)} more, or move KBO_DATA_DIR",
            )


def start_process(settings: Settings) -> int | None:
    """The process id of the `kbo start` on this data directory; None when none runs."""
    return holder_if_any(start_lock(settings))


def check_start(settings: Settings) -> Iterator[Finding]:
    """Whether `kbo start` runs, and its web UI answers."""
    pid = start_process(settings)
    if pid is None:
        yield Finding(
            "warning",
            "kbo start",
            "does not run: nothing is fetched, imported or tried again by itself",
            "kbo start",
        )
    elif settings.code_host is not None:
        yield Finding("ok", "kbo start", f"runs as process {pid}; the web UI is another process")
    elif answers(f"{(address := ui_address(settings))}/server_info"):
        yield Finding("ok", "kbo start", f"runs as process {pid}, web UI: {address}")
    else:
        yield Finding(
            "warning",
            "kbo start",
            f"runs as process {pid}, but on port {settings.ui_port} no web UI answers",
            f"wait while it starts, see whether its KBO_UI_PORT is another, or see"
            f" {settings.work_dir / 'logs' / 'webserver.log'}",
        )


def check_pause(settings: Settings) -> Iterator[Finding]:
    """Whether `kbo pause` holds."""
    if is_paused(settings):
        yield Finding("warning", "pause", "paused: nothing new begins", "kbo resume")


def check_published(settings: Settings) -> Iterator[Finding]:
    """Whether readers can open the published register."""
    if not isinstance(settings.database, Path):
        yield from _check_shared(settings)
        return
    if not settings.database.exists():
        yield Finding("ok", "published register", f"{settings.database}: none yet")
        return
    try:
        _open(settings.database)
        standing = published_state_of(settings.database)
    except RegisterError as error:
        yield found_error("published register", error)
        return
    yield Finding("ok", "published register", f"{_said(standing)}, opens: {settings.database}")
    if not has_views(settings.database, settings.privacy):
        yield Finding(
            "warning",
            "views",
            f"those of {settings.database} were made by another version, or with another"
            f" KBO_PRIVACY than {settings.privacy}",
            "kbo start makes them anew, or kbo rebuild, or the next publication",
        )


def check_register(settings: Settings) -> Iterator[Finding]:
    """Whether the register at work opens; a shared one is looked at as readers do."""
    if not isinstance(settings.database, Path):
        return
    file = settings.register_file
    if not file.exists():
        text = f"{file}: none yet"
        if settings.database.exists():
            yield Finding(
                "error",
                "register at work",
                f"{file}: not there, though a register is published",
                "kbo start mends it, or kbo rebuild",
            )
            return
        yield Finding("ok", "register at work", text)
        return
    lock = register_lock(file)
    try:
        with exclusive_lock(lock):
            _open(file)
            standing = published_state_of(file)
    except StorageError:
        yield Finding("ok", "register at work", f"process {holder(lock)} is at work on it")
        return
    except RegisterError as error:
        yield Finding(
            "error",
            "register at work",
            str(error).split("; ", 1)[0],
            "if another program has it open, end that; else kbo rebuild",
        )
        return
    yield Finding("ok", "register at work", f"{_said(standing)}, opens: {file}")


def _check_shared(settings: Settings) -> Iterator[Finding]:
    """Whether a register that writers and readers share answers."""
    try:
        standing = published_state_of(settings.database)
    except KboError as error:
        yield found_error("published register", error)
        return
    yield Finding("ok", "published register", f"{_said(standing)}, answers: {settings.database}")


def _directories(settings: Settings) -> list[Path]:
    written = (directory for directory in (settings.database_dir,) if directory is not None)
    return [
        settings.data_dir,
        settings.downloads_dir,
        settings.staging_dir,
        settings.work_dir,
        settings.inbox_dir,
        settings.dagster_home,
        *written,
    ]


def _open(file: Path) -> None:
    """Opens a DuckDB file for reading.

    Raises:
        RegisterError: it does not open; also when another program has it open for writing.
    """
    with duckdb.connect(":memory:") as connection:
        try:
            connection.execute(f"ATTACH {literal(file)} AS looked_at (READ_ONLY, TYPE duckdb)")
        except duckdb.Error as error:
            line = first_line(error)
            raise RegisterError(f"{file}: {line}; end what has it open, or move it away") from None


def _said(standing: PublishedState) -> str:
    count = len(standing.published)
    return f"{standing.newest} ({counted(count, 'extract')})" if count else "no extract"


def holder_if_any(lock: Path) -> int | None:
    """The process id of who holds a lock; a lock that is not there is not made."""
    return holder(lock) if lock.exists() else None
