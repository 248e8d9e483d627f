"""Export: the current tables as Parquet, or a delta, in a directory that is complete or absent.

The profile of each enterprise is included: Parquet has no views, and most people ask for it. A
delta leaves it out, as it follows from the tables.
"""

import datetime
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import duckdb

from kbo_pipeline.core.database import connect
from kbo_pipeline.core.disk_space import check_space_to_export
from kbo_pipeline.core.errors import ExportError, NotReadyError
from kbo_pipeline.core.files import exclusive_lock, replace_directory
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import ALL_TABLES, Privacy
from kbo_pipeline.read.content import Contents
from kbo_pipeline.read.manifest import (
    DELTA_FORMAT,
    FORMAT,
    About,
    Delta,
    Export,
    ExportedFile,
    State,
    check_replaceable,
    read_delta,
    write_manifest,
    write_parquet,
)
from kbo_pipeline.read.net import Report, contents_at, find_net, moved, net_rows
from kbo_pipeline.read.published import open_published
from kbo_pipeline.read.state_sql import EXTRACTS, fill_shown
from kbo_pipeline.read.types import PublishedExtract, named
from kbo_pipeline.read.views import export_queries, source

NET_DAYS = (7, 31)
"""Net deltas that are kept beside an export begin so many days before it."""

_KEPT_DAYS = max(NET_DAYS)
"""Deltas from each extract to the next are kept for so many days."""

_DELTA_NAME = re.compile(r"\d{4,}-(?:full|update)_\d{4,}-(?:full|update)")
_LEFTOVER = re.compile(rf"\.{_DELTA_NAME.pattern}\.(?:unfinished|replaced)")


_MOMENTS = "SELECT id, completed_at FROM import_jobs WHERE status = 'completed'"


def not_reported(name: str, done: int, total: int) -> None:
    """A report to nobody."""


def _second(report: Report) -> Report:
    """A report on what follows the first step."""
    return lambda name, done, total: report(name, done + 1, total + 1)


@dataclass(frozen=True, slots=True)
class _Published:
    """The published register, open for reading.

    Attributes:
        extracts: the published ones, the newest first.
        moments: when each of them was published, by key.
        about: what is known of the newest.
    """

    connection: duckdb.DuckDBPyConnection
    settings: Settings
    extracts: Sequence[PublishedExtract]
    moments: Mapping[str, datetime.datetime]
    about: About

    def newest(self, report: Report) -> State:
        """The newest state; counting it, where it is not known, is the first of all steps."""
        newest = self.extracts[0]
        contents = contents_at(
            self.connection,
            self.settings,
            newest.number,
            report=lambda name: report(name, 0, len(ALL_TABLES) + 1),
        )
        return self.state(newest, contents)

    def state(self, extract: PublishedExtract, contents: Contents) -> State:
        """The state at an extract, which has this content."""
        return State(extract.key, extract.snapshot_date, self.moments[extract.key], contents)


@contextmanager
def _opened(settings: Settings, extract: str | None = None) -> Iterator[_Published]:
    """Opens the published register for the one export that is at work."""
    with (
        exclusive_lock(settings.work_dir / "export.lock"),
        connect(settings) as connection,
        open_published(connection, settings.database),
    ):
        row = connection.execute(source(settings.privacy)).fetchone()
        if row is None:
            raise NotReadyError(f"{settings.database}: no extract is published; kbo import a Full")
        newest, _, _, source_line, _, proven, proven_at = row
        if extract not in (None, newest):
            raise NotReadyError(
                f"{extract}: only the newest published extract is exported: materialize {newest}"
            )
        extracts = [PublishedExtract(*row) for row in connection.execute(EXTRACTS).fetchall()]
        rows = connection.execute(_MOMENTS).fetchall()
        moments = {key: moment.astimezone(datetime.UTC) for key, moment in rows}
        about = About(source_line, settings.privacy, proven, proven_at)
        yield _Published(connection, settings, extracts, moments, about)


def write_export(
    settings: Settings,
    directory: Path,
    *,
    extract: str | None = None,
    report: Report = not_reported,
) -> Export:
    """Writes the current tables of the published register as Parquet, sorted, ZSTD.

    The directory holds a whole export at any moment, the old or the new one, or is not there. The
    settings decide who is left out, whatever the views of the published file say.

    Args:
        settings: say where the register is, and who is left out.
        directory: where to; created, or replaced if it is empty or one of our exports.
        extract: what must be the newest published extract; None for any.
        report: takes the name of the current table, how many are done, and of how many.

    Raises:
        ExportError: something else is in the directory.
        NotReadyError: nothing is published, or another extract is.
        RegisterError: the published file is no register.
        StorageError: another export is at work, or there is no room.
    """
    directory = Path(os.path.realpath(directory))
    check_replaceable(directory, FORMAT)
    with _opened(settings, extract) as published:
        return _write_export(published, directory, report)


def write_export_and_deltas(
    settings: Settings,
    directory: Path,
    deltas: Path,
    *,
    extract: str | None = None,
    report: Report = not_reported,
) -> tuple[Export, dict[str, Delta]]:
    """Writes an export as `write_export` does, and deltas to the same state into another directory.

    There is one from each extract of the last 31 days to the next, and one from the last extract
    that is 7, or 31, days older. Those that are there are kept as they are; others of ours go.

    Args:
        settings: as of `write_export`, like `directory`, `extract` and `report`.
        directory: where the export goes.
        deltas: where directories `<from>_<to>` are made, each complete or absent.
        extract: what must be the newest published extract; None for any.
        report: takes names of tables, and of deltas.

    Returns:
        The export, and the deltas that lead to it, by name.
    """
    directory, deltas = (Path(os.path.realpath(path)) for path in (directory, deltas))
    check_replaceable(directory, FORMAT)
    with _opened(settings, extract) as published:
        export = _write_export(published, directory, report)
        return export, _keep_deltas(published, deltas, export.state, report)


def write_delta(
    settings: Settings, directory: Path, since: str, *, report: Report = not_reported
) -> Delta:
    """Writes what turns an export at an extract into one at the newest, as Parquet.

    Args:
        settings: as of `write_export`, like `report`.
        directory: where to; created, or replaced if it is empty or one of our deltas.
        since: the number, key or date of a published extract.
        report: takes the name of the current table, how many are done, and of how many.

    Raises:
        ExportError: something else is in the directory.
        ExtractError: `since` is no name of an extract.
        NotFoundError: it is not published.
        NotReadyError: nothing is published.
        RegisterError: the published file is no register.
        StorageError: another export is at work, or there is no room.
    """
    directory = Path(os.path.realpath(directory))
    check_replaceable(directory, DELTA_FORMAT)
    with _opened(settings) as published:
        base = named(published.extracts, since)
        check_space_to_export(directory, settings.database, settings.temporary_dir)
        target = published.newest(report)
        report("what changed", 0, len(ALL_TABLES) + 1)
        return _write_delta(published, directory, base, target, _second(report))


def _write_export(published: _Published, directory: Path, report: Report) -> Export:
    connection, settings = published.connection, published.settings
    check_space_to_export(directory, settings.database, settings.temporary_dir)
    state = published.newest(report)
    if settings.privacy != "full":
        connection.execute(*fill_shown(settings.privacy, "TEMP TABLE"))
    with replace_directory(directory) as unfinished:
        return write_tables(
            connection,
            unfinished,
            state,
            published.about,
            _second(report),
            privacy=settings.privacy,
        )


def write_tables(
    connection: duckdb.DuckDBPyConnection,
    directory: Path,
    state: State,
    about: About,
    report: Report,
    *,
    privacy: Privacy,
) -> Export:
    """Writes all tables of an export, and its manifest, into a new directory.

    Args:
        connection: has the tables, in the default database.
        directory: where to.
        state: what is to be in the files.
        about: what else is known of it.
        report: takes the name of the current table, how many are done, and of how many.
        privacy: who of those in the tables is left out.
    """
    directory.chmod(0o755)  # it is made to be handed on; its files have the umask's mode
    queries = export_queries(privacy)
    tables = {}
    for done, (name, query) in enumerate(queries.items()):
        report(name, done, len(queries))
        content = state.contents.get(name)
        row_hash = content and str(content.row_hash)
        tables[name] = write_parquet(
            connection, query, directory / f"{name}.parquet", row_hash=row_hash
        )
    export = Export(state, about, tables)
    write_manifest(directory, export)
    return export


def _write_delta(
    published: _Published,
    directory: Path,
    base: PublishedExtract,
    target: State,
    report: Report,
) -> Delta:
    """Writes the delta between two published extracts, of which the newer one's state is known."""
    connection = published.connection
    newer = named(published.extracts, target.extract)
    changes = find_net(connection, base.number, newer.number, published.about.privacy)
    before = published.state(base, moved(target.contents, changes, back=True))
    about = published.about
    if newer is not published.extracts[0]:
        about = About(newer.source, about.privacy)
    tables: dict[str, ExportedFile] = {}
    with replace_directory(directory) as unfinished:
        unfinished.chmod(0o755)
        for done, table in enumerate(ALL_TABLES):
            report(table.name, done, len(ALL_TABLES))
            change = changes[table.name]
            tables[table.name] = write_parquet(
                connection,
                net_rows(table),
                unfinished / f"{table.name}.parquet",
                added=change.added.rows,
                removed=change.removed.rows,
            )
        delta = Delta(before, target, about, tables)
        write_manifest(unfinished, delta)
    return delta


def _keep_deltas(
    published: _Published, directory: Path, newest: State, report: Report
) -> dict[str, Delta]:
    """Makes the deltas that are to be there, and removes others; returns those to the newest."""
    _remove_leftovers(directory)
    plan = _deltas_to_keep(published.extracts)
    states = {newest.extract: newest}
    wanted: dict[str, Delta] = {}
    for done, (base, newer) in enumerate(plan):
        name = f"{base.key}_{newer.key}"
        report(name, done, len(plan))
        target = states[newer.key]
        delta = _kept(published, directory / name, target)
        if delta is None:
            check_replaceable(directory / name, DELTA_FORMAT)
            delta = _write_delta(published, directory / name, base, target, not_reported)
        wanted[name], states[base.key] = delta, delta.base
    for other in _deltas_in(directory):
        if other.name not in wanted:
            _remove(other)
    return {name: delta for name, delta in wanted.items() if delta.target.extract == newest.extract}


def _deltas_to_keep(
    extracts: Sequence[PublishedExtract],
) -> list[tuple[PublishedExtract, PublishedExtract]]:
    """From which extract to which deltas lead; each begins at one that is known by those before."""
    newest = extracts[0]

    def older(days: int) -> list[PublishedExtract]:
        day = newest.snapshot_date - datetime.timedelta(days=days)
        return [extract for extract in extracts if extract.snapshot_date <= day]

    past = older(_KEPT_DAYS)
    recent = takewhile(lambda pair: pair[0] not in past, pairwise(extracts))
    month = [(base, newer) for newer, base in recent]
    net = [(bases[0], newest) for days in NET_DAYS if (bases := older(days))]
    return list(dict.fromkeys((*month, *net)))


def _kept(published: _Published, directory: Path, target: State) -> Delta | None:
    """The delta in a directory, if it is whole and leads between states that still are so."""
    try:
        delta = read_delta(directory)
        sizes = [(directory / file.file).stat().st_size for file in delta.tables.values()]
    except (ExportError, OSError):
        return None  # it is not there, or is made again
    is_whole = sizes == [file.bytes for file in delta.tables.values()]
    same = (
        directory.name == f"{delta.base.extract}_{delta.target.extract}"
        and delta.target == target
        and delta.base.published_at == published.moments.get(delta.base.extract)
        and delta.about.privacy == published.about.privacy
    )
    return delta if is_whole and same else None


def _deltas_in(directory: Path) -> list[Path]:
    """The deltas in a directory; what is not ours, or holds something else, is none."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if _DELTA_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with suppress(ExportError):
                read_delta(path)
                check_replaceable(path, DELTA_FORMAT)
                found.append(path)
    return found


def _remove(directory: Path) -> None:
    """Removes a delta; nobody ever finds a part of it under its name."""
    leftover = directory.with_name(f".{directory.name}.unfinished")
    os.rename(directory, leftover)
    shutil.rmtree(leftover)


def _remove_leftovers(directory: Path) -> None:
    """Removes what a killed process has left; deltas can be made again."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)
