"""`kbo doctor`: looks at one thing after the other and says what is wrong and what to do.

What it looks at on this machine is here, what Dagster's storage says is in `dagster_checks.py`. To
check one more thing, add a row to the table in `findings.py`, and a function that yields it to one
of the two lists at the end.
"""

import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import duckdb
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from kbo_pipeline.core.disk_space import DiskSpace, existing, space_now, space_to_import
from kbo_pipeline.core.environment import open_secrets
from kbo_pipeline.core.errors import ExtractError, KboError, RegisterError, StorageError
from kbo_pipeline.core.extracts import PublishedState, key_or_none, zips_in
from kbo_pipeline.core.files import holder
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.text import counted, first_line, line_of, listed, megabytes, printable
from kbo_pipeline.fetch.inbox import Inbox
from kbo_pipeline.operate.instance import open_instance
from kbo_pipeline.operate.markers import is_paused, read_lost
from kbo_pipeline.operate.processes.postgres import embedded_server_url, moved_aside, sqlalchemy_url
from kbo_pipeline.operate.processes.start import answers, start_lock
from kbo_pipeline.operate.processes.storage import explained
from kbo_pipeline.operate.repair import dagster_checks
from kbo_pipeline.operate.repair.dagster_checks import Installation, Sensors
from kbo_pipeline.operate.repair.findings import Finding, Severity, no_problem, problem, problem_of
from kbo_pipeline.operate.repair.repair import plan_of
from kbo_pipeline.operate.runtime import ui_address
from kbo_pipeline.publish.copy import has_views
from kbo_pipeline.read.index import why_not_current
from kbo_pipeline.read.published import published_state_of

_T = TypeVar("_T")

_OLD_SECONDS = 86_400.0  # no import and no download takes so long
_MOST_NAMED = 3
_READ_OR_WRITE, _SEARCH = 0o066, 0o011  # by the group, and by others


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Where everything is, and whether the portal can be asked."""
    yield no_problem("settings", f"data in {settings.data_dir}, published {settings.database}")
    if not settings.has_account:
        yield problem("no account", names=settings.account_not_set, inbox=settings.inbox_dir)


def check_directories(settings: Settings) -> Iterator[Finding]:
    """Whether files can be created in all directories, or where these will be."""
    problems = []
    for directory in dict.fromkeys(map(existing, _directories(settings))):
        try:
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            problems.append(problem("not writable", directory=directory, reason=error.strerror))
    yield from problems or [no_problem("directories", "all can be written to")]


def check_disks(settings: Settings) -> Iterator[Finding]:
    """Whether the next import will have room, as large as the newest ZIPs that are kept."""
    newest = {key.type: (key, file) for key, file in sorted(zips_in(settings.downloads_dir))}
    if not newest:
        yield from _too_small(space_now(settings), "error", "whatever comes next")
    problems: list[Finding] = []
    for kind, (key, file) in sorted(newest.items()):
        # Updates come each day, a Full now and then.
        severity: Severity = "error" if kind == "update" else "warning"
        try:
            problems += _too_small(
                space_to_import(settings, key, file), severity, f"one like {key}"
            )
        except ExtractError as error:
            yield problem_of("downloads", error, "warning")
    yield from problems
    if not problems:
        for disk in space_now(settings):
            free = f"{megabytes(disk.free)} are free on the disk of {disk.directory}"
            yield no_problem("disk", free)


def _too_small(disks: Iterable[DiskSpace], severity: Severity, what: str) -> Iterator[Finding]:
    for disk in disks:
        if disk.missing > 0:
            sizes = {name: megabytes(getattr(disk, name)) for name in ("needed", "free", "missing")}
            place = disk.directory
            yield problem("disk too small", severity, what=what, directory=place, **sizes)


def start_process(settings: Settings) -> int | None:
    """The process id of the `kbo start` on this data directory; None when none runs."""
    return holder_if_any(start_lock(settings))


def check_start(settings: Settings) -> Iterator[Finding]:
    """Whether `kbo start` runs, and its web UI answers."""
    pid = start_process(settings)
    if pid is None:
        yield problem("not started")
    elif settings.code_host is not None:
        yield no_problem("kbo start", f"runs as process {pid}; the web UI is another process")
    elif answers(f"{(address := ui_address(settings))}/server_info"):
        yield no_problem("kbo start", f"runs as process {pid}, web UI: {address}")
    else:
        log = settings.work_dir / "logs" / "webserver.log"
        yield problem("no web UI", pid=pid, port=settings.ui_port, log=log)


def check_pause(settings: Settings) -> Iterator[Finding]:
    """Whether `kbo pause` holds."""
    if is_paused(settings):
        yield problem("paused")


def check_published(settings: Settings) -> Iterator[Finding]:
    """Whether readers can open the published register."""
    file = settings.database.file
    if file is not None and not file.exists():
        yield no_problem("published register", f"{settings.database}: none yet")
        return
    try:
        if file is not None:
            _open(file)
        state = published_state_of(settings.database)
    except KboError as error:
        yield problem_of("published register", error)
        return
    verb = "answers" if file is None else "opens"
    yield no_problem("published register", f"{_summary(state)}, {verb}: {settings.database}")
    if file is not None and not has_views(file, settings.privacy):
        yield problem("other views", file=settings.database, privacy=settings.privacy)


def check_search(settings: Settings) -> Iterator[Finding]:
    """Whether searches can forgive: the search index is of what is published, and whole."""
    file = settings.database.file
    if file is not None and not file.exists():
        return
    try:
        state = published_state_of(settings.database)
    except KboError:  # that is told of the published register
        return
    why = why_not_current(settings, state)
    if why is not None:
        yield problem("no search index", text=why.rpartition("; ")[0])
    elif state.newest is not None:
        yield no_problem("search index", f"of {state.newest}: {settings.search_dir}")


def check_register(settings: Settings) -> Iterator[Finding]:
    """Whether the register at work opens; a shared one is the published register."""
    file = settings.register.file
    if file is None:
        return
    if not file.exists():
        none_yet = no_problem("register at work", f"{file}: none yet")
        yield problem("no register", file=file) if settings.database.may_exist else none_yet
        return
    try:
        with settings.register.sole_writer(0.0):
            _open(file)
            state = published_state_of(settings.register)
    except StorageError:
        yield no_problem(
            "register at work", f"process {holder(DuckDBFile(file).lock)} is at work on it"
        )
        return
    except RegisterError as error:
        yield problem("register does not open", text=str(error).split("; ", 1)[0])
        return
    yield no_problem("register at work", f"{_summary(state)}, opens: {file}")


def _directories(settings: Settings) -> list[Path]:
    written = settings.database.directory
    return [
        settings.data_dir,
        settings.downloads_dir,
        settings.staging_dir,
        settings.work_dir,
        settings.inbox_dir,
        settings.dagster_home,
        *([written] if written is not None else []),
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


def _summary(state: PublishedState) -> str:
    count = len(state.published)
    return f"{state.newest} ({counted(count, 'extract')})" if count else "no extract"


def holder_if_any(lock: Path) -> int | None:
    """The process id of the holder of a lock; a lock that is not there is not created."""
    return holder(lock) if lock.exists() else None


def check_secrets(settings: Settings) -> Iterator[Finding]:
    """Whether other users can read passwords in the `.env` file."""
    if (line := open_secrets()) is not None:
        text, _, remedy = line.partition("; ")
        yield problem("open secrets", text=text, remedy=remedy)


def check_privacy(settings: Settings) -> Iterator[Finding]:
    """Whether other users can look into our directories, or write there."""
    root = settings.data_dir
    inside = (
        settings.work_dir,
        settings.staging_dir,
        settings.downloads_dir,
        settings.inbox_dir,
        settings.rejected_dir,
        settings.dagster_home,
    )
    # When others cannot enter the root, they cannot reach what is inside.
    is_passed = root.is_dir() and _mode(root) & _SEARCH and not _mode(root) & _READ_OR_WRITE
    for directory in (root, *inside):
        if directory != root and directory.is_relative_to(root) and not is_passed:
            continue
        if directory.is_dir() and _mode(directory) & _READ_OR_WRITE:
            yield problem("open directory", directory=directory, mode=_mode(directory))


def check_postgres_url(settings: Settings) -> Iterator[Finding]:
    """Whether a PostgreSQL of one's own on another machine is reached without protection."""
    if settings.postgres_url is None:
        return
    url = make_url(sqlalchemy_url(settings.postgres_url))
    asked = url.host or url.query.get("host") or "/"
    hosts = asked.split(",") if isinstance(asked, str) else asked
    far = [host for host in hosts if not _is_here(host)]
    if not far:
        return
    where = ", ".join(far)
    if not (url.password or url.query.get("password") or url.query.get("sslcert")):
        yield problem("no password", hosts=where)
    if not url.query.get("sslmode"):
        yield problem("no encryption", hosts=where)


def _is_here(host: str) -> bool:
    """Whether a host is a socket's directory, or this machine."""
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def check_leftovers(settings: Settings) -> Iterator[Finding]:
    """Whether processes that died have left files that nobody needs."""
    old = [path for path in _unfinished(settings) if _age(path) > _OLD_SECONDS]
    if old:
        yield problem("unfinished files", names=_named(old))
    aside = sorted((settings.work_dir / "damaged").glob("*.duckdb"))
    aside += moved_aside(settings.postgres_dir)
    if aside:
        yield problem("files put aside", names=", ".join(map(str, aside)))
    try:
        newest = published_state_of(settings.database).newest
    except RegisterError:
        return  # check_published reports it
    staged = [
        file
        for file in sorted(settings.staging_dir.glob("*.duckdb"))
        if (key := key_or_none(file.stem)) is not None
        and newest is not None
        and key.number <= newest.number
        and holder_if_any(settings.staging_dir / f"{key}.lock") is None
    ]
    if staged:
        yield problem("old staging files", names=_named(staged))


def check_inbox(settings: Settings) -> Iterator[Finding]:
    """Whether something lies in the inbox that waits for a person."""
    inbox = Inbox(settings.inbox_dir)
    rejected = _files(inbox.rejected_dir, is_zip=True)
    if rejected:
        names, place = _named(rejected), inbox.rejected_dir
        yield problem("rejected ZIPs", count=len(rejected), names=names, directory=place)
    foreign = [f for f in _files(inbox.directory, is_zip=False) if _age(f) > _OLD_SECONDS]
    if foreign:
        yield problem("foreign files", names=_named(foreign))
    waiting = [*_files(inbox.directory, is_zip=True), *_files(inbox.processing_dir, is_zip=True)]
    if waiting and start_process(settings) is None:
        yield problem("waiting ZIPs", count=len(waiting), names=_named(waiting))


def _unfinished(settings: Settings) -> Iterator[Path]:
    for directory in (settings.downloads_dir, settings.staging_dir):
        yield from sorted(directory.glob("*.part"))
    yield from sorted(settings.staging_dir.glob("*.unpacked"))
    yield from sorted(settings.reports_dir.glob("*/*.part"))
    yield from sorted(settings.work_dir.rglob("*.part"))
    published = settings.database.file
    if published is not None:
        yield from sorted(published.parent.glob(f"{published.name}.part"))


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


def check_ledger(installation: Installation) -> Iterator[Finding]:
    """Whether register, published file and Dagster agree on what is published and applied."""
    settings = installation.settings
    for key in read_lost(settings):
        if key in installation.progress.published:
            continue
        yield problem("lost extract", None, key, extract=key)
    try:
        plan = plan_of(installation.instance, settings)
    except StorageError as error:
        yield problem_of("ledger", error, "warning")
        return
    yield from (problem("disagreement", text=line) for line in plan.lines)
    if not plan.lines:
        yield no_problem("ledger", "register, published file and Dagster agree")


_ON_DISK: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "settings": check_settings,
    "secrets": check_secrets,
    "PostgreSQL's address": check_postgres_url,
    "directories": check_directories,
    "privacy": check_privacy,
    "disk": check_disks,
    "kbo start": check_start,
    "pause": check_pause,
    "published register": check_published,
    "search index": check_search,
    "register at work": check_register,
    "inbox": check_inbox,
    "leftovers": check_leftovers,
}

_EXAMINATIONS: dict[str, Callable[[Installation], Iterator[Finding]]] = {
    "ledger": check_ledger,
    "daemon": dagster_checks.check_daemons,
    "sensors": dagster_checks.check_sensors,
    "runs": dagster_checks.check_stuck_runs,
    "failed runs": dagster_checks.check_failed_runs,
    "pools": dagster_checks.check_pools,
    "extracts": dagster_checks.check_extracts,
    "rows set aside": dagster_checks.check_rejected_rows,
    "portal": dagster_checks.check_portal,
    "freshness": dagster_checks.check_freshness,
    "proof": dagster_checks.check_proof,
}


def diagnose(settings: Settings, sensors: Sensors) -> Iterator[Finding]:
    """Looks at everything, one thing after the other; what cannot be looked at is a finding too.

    The embedded PostgreSQL is started for it, if there is one.
    """
    for subject, look in _ON_DISK.items():
        yield from _guarded(subject, look, settings)
    if settings.postgres_url is None and not settings.postgres_dir.exists():
        yield no_problem("PostgreSQL", "none yet; kbo start and kbo import create it")
        return
    where = "at DAGSTER_POSTGRES_URL" if settings.postgres_url else f"in {settings.postgres_dir}"
    try:
        with open_instance(settings) as instance:
            instance.get_runs_count()
            yield no_problem("PostgreSQL", f"answers, {where}")
            installation = Installation(settings, instance, start_process(settings), sensors)
            for subject, examine in _EXAMINATIONS.items():
                yield from _guarded(subject, examine, installation)
    except KboError as error:
        yield problem_of("PostgreSQL", error)
    except SQLAlchemyError as error:
        embedded = settings.postgres_dir if settings.postgres_url is None else None
        url = make_url(settings.postgres_url or embedded_server_url(settings.postgres_dir))
        yield problem_of("PostgreSQL", explained(error, url, embedded))


def _guarded(subject: str, look: Callable[[_T], Iterable[Finding]], at: _T) -> Iterator[Finding]:
    """Turns an error of one check into a finding, so that the other checks still run."""
    try:
        yield from look(at)
    except KboError as error:
        yield problem_of(subject, error)
    except Exception as error:  # whatever it is: something is wrong there, and it is shown
        line = line_of(error) or f"{type(error).__name__}: {first_line(error)}"
        yield problem("check failed", None, subject, error=line)
