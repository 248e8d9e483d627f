"""Apply a delta to an export, far from any register: only the two directories are read."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

from kbo_pipeline.core.database import connect
from kbo_pipeline.core.disk_space import check_space_to_keep
from kbo_pipeline.core.errors import ExportError
from kbo_pipeline.core.files import exclusive_lock, put_back, replace_directory
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import glob_escaped, listed, literal
from kbo_pipeline.core.tables import ALL_TABLES, Table
from kbo_pipeline.core.text import first_line
from kbo_pipeline.read.content import hash_of, read_content
from kbo_pipeline.read.export import not_reported, write_tables
from kbo_pipeline.read.manifest import (
    FORMAT,
    Delta,
    Export,
    check_replaceable,
    read_delta,
    read_export,
    sha256_of,
)
from kbo_pipeline.read.net import ADDED, REMOVED, Report


def apply_delta(
    settings: Settings, base: Path, delta: Path, *, report: Report = not_reported
) -> tuple[Export, Delta]:
    """Turns an export into that of a later state, as a whole export of that state would be.

    The directory is replaced at the end, once the hash of what was written is that of the delta's
    target; after an error nothing has changed. Someone who is killed in the instant between two
    renames finds the old one back with the next call.

    Args:
        settings: say where work is done, and how much memory it may take.
        base: the directory of an export at the state from which the delta leads.
        delta: the directory of the delta.
        report: takes the name of the current table, how many are done, and of how many.

    Returns:
        The export that is there now, and the delta.

    Raises:
        ExportError: one of them is not what it should be, or they do not belong together.
        StorageError: another export is at work, or there is no room.
    """
    base, delta = Path(os.path.realpath(base)), Path(os.path.realpath(delta))
    with exclusive_lock(settings.work_dir / "export.lock"), connect(settings) as connection:
        put_back(base)
        before, change = read_export(base), read_delta(delta)
        check_replaceable(base, FORMAT)
        _check_belong(base, before, delta, change)
        _check_files(base, before)
        _check_files(delta, change)
        check_space_to_keep(str(base), base, before.bytes + change.bytes)
        with _explained(base, delta):
            _show_result(connection, base, delta)
            with replace_directory(base) as unfinished:
                export = write_tables(
                    connection,
                    unfinished,
                    change.target,
                    change.about,
                    lambda name, done, total: report(name, done, total + 1),
                    privacy="full",  # whoever is left out is in neither directory
                )
                report("hash", len(export.tables), len(export.tables) + 1)
                _check_result(connection, unfinished, export, base)
    return export, change


def _check_belong(base: Path, before: Export, delta: Path, change: Delta) -> None:
    here, there = before.state, change.base
    if here.content_hash == there.content_hash and before.about.privacy == change.about.privacy:
        return
    if here.content_hash == change.target.content_hash:
        raise ExportError(f"{base}: it is at {change.target.extract} already, where {delta} leads")
    what = f"{here.extract}, KBO_PRIVACY={before.about.privacy}, content {here.content_hash[:12]}"
    raise ExportError(
        f"{base}: it is at {what}; {delta} leads from {there.extract},"
        f" KBO_PRIVACY={change.about.privacy}, content {there.content_hash[:12]}; get the delta"
        " that begins there, or a whole export"
    )


def _check_files(directory: Path, held: Export | Delta) -> None:
    """Makes sure that all files are what the manifest says."""
    for file in held.tables.values():
        path = directory / file.file
        try:
            is_same = path.stat().st_size == file.bytes and sha256_of(path) == file.sha256
        except OSError as error:
            raise ExportError(f"{path}: {error.strerror}; get {directory.name} anew") from None
        if not is_same:
            raise ExportError(
                f"{path}: not the file that manifest.json describes; get {directory.name} anew"
            )


@contextmanager
def _explained(base: Path, delta: Path) -> Iterator[None]:
    """Turns errors of what is in the files into one that names the directories."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InterruptException):
        raise
    except duckdb.Error as error:
        raise ExportError(
            f"{delta}: cannot be applied to {base} ({first_line(error)}); get both anew"
        ) from None


def _show_result(connection: duckdb.DuckDBPyConnection, base: Path, delta: Path) -> None:
    """Makes a view for each table of a register, in which the rows are those of the result."""
    for table in ALL_TABLES:
        expected = [(column.name, column.type) for column in table.columns]
        old = _relation(connection, base / f"{table.name}.parquet", expected)
        changed = [("_change", "VARCHAR"), *expected]
        new = _relation(connection, delta / f"{table.name}.parquet", changed)
        connection.execute(_result(table, old, new))


def _relation(
    connection: duckdb.DuckDBPyConnection, file: Path, columns: Sequence[tuple[str, str]]
) -> str:
    """Reads a file that begins with these columns."""
    relation = f"read_parquet({literal(glob_escaped(file))})"
    found = connection.execute(f"DESCRIBE FROM {relation}").fetchall()
    if [(name, kind) for name, kind, *_ in found][: len(columns)] != columns:
        raise ExportError(
            f"{file}: its columns are not those that this version of kbo_pipeline knows; use the"
            f" version that wrote it, or get {file.parent.name} anew"
        )
    return relation


def _result(table: Table, old: str, new: str) -> str:
    columns = listed((f"r.{name}" for name in table.column_names), by=8)
    same = "\n        AND ".join(f"d.{n} IS NOT DISTINCT FROM r.{n}" for n in table.column_names)
    return f"""CREATE VIEW main.{table.name} AS
SELECT *, true AS _is_current
FROM (
    SELECT {columns}
    FROM {old} r
    ANTI JOIN (SELECT * FROM {new} WHERE _change = '{REMOVED}') d
        ON {same}
    UNION ALL
    SELECT {columns}
    FROM {new} r
    WHERE _change = '{ADDED}'
)"""


def _check_result(
    connection: duckdb.DuckDBPyConnection, directory: Path, export: Export, base: Path
) -> None:
    """Makes sure that what was written has the hash of the target."""
    contents = {}
    for table in ALL_TABLES:
        file = literal(glob_escaped(directory / f"{table.name}.parquet"))
        contents[table.name] = read_content(connection, table, f"FROM read_parquet({file})")
    if hash_of(contents) != export.state.content_hash:
        wrong = [
            name for name, content in contents.items() if content != export.state.contents[name]
        ]
        raise ExportError(
            f"{base}: stays as it is: with the delta, {', '.join(wrong)} would not be what"
            f" {export.extract} has; get a whole export"
        )
