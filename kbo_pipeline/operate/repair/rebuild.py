"""Makes the register anew from kept ZIPs alone, beside the one that is there. No Dagster."""

import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path

import duckdb

from kbo_pipeline.apply.register import open_register, open_register_to_copy
from kbo_pipeline.core.disk_space import check_space_to_import
from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey, zips_in
from kbo_pipeline.core.files import move_into_place
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.fetch.zips import fetch_zip
from kbo_pipeline.publish.copy import replace_shared
from kbo_pipeline.publish.publish import complete, show_to_readers
from kbo_pipeline.stage.staging import stage

Connect = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]
"""Opens an in-memory DuckDB."""


def plan_rebuild(kept: Collection[ExtractKey], newest: ExtractKey | None) -> list[ExtractKey]:
    """The extracts from which a register is made anew, in order: as long a history as there is.

    Args:
        kept: the extracts whose ZIPs are there.
        newest: what was published last; None when nobody knows: then as far as ZIPs lead.

    Raises:
        NotReadyError: no line of ZIPs leads there; names one that is missing.
    """
    line: list[ExtractKey] = []
    for key in sorted(kept):
        if newest is not None and key.number > newest.number:
            break
        follows = bool(line) and line[-1].number == key.number - 1
        if (key.type == "update" and follows) or (
            key.type == "full" and not (line and line[-1].number == key.number)
        ):
            line.append(key)
    if not line:
        missing = str(newest) if newest is not None and newest.type == "full" else "a Full"
        raise NotReadyError(f"no ZIP of {missing} is kept to begin with; kbo fetch downloads one")
    if newest is not None and line[-1].number != newest.number:
        missing = str(ExtractKey(line[-1].number + 1, "update"))
        raise NotReadyError(
            f"{newest}: the kept ZIPs reach only to {line[-1]}; kbo fetch {missing}, or put"
            " that ZIP into downloads"
        )
    return line


def kept_keys(settings: Settings) -> set[ExtractKey]:
    """The extracts whose ZIPs are in the downloads directory, by their names."""
    return {key for key, _ in zips_in(settings.downloads_dir)}


def rebuild_register(
    connect: Connect,
    settings: Settings,
    newest: ExtractKey | None,
    report: Callable[[str], None],
) -> list[ExtractKey]:
    """Makes the register anew from kept ZIPs; readers and the old one stay until it is whole.

    Whoever else writes the register waits meanwhile.

    Args:
        connect: opens an in-memory DuckDB.
        settings: say where everything is.
        newest: what was published last; None when nobody knows.
        report: takes a line of progress.

    Returns:
        The extracts that it was made from, in order.

    Raises:
        NotReadyError: a ZIP is missing; names it.
        ExtractError: a ZIP is not what it says.
        StorageError: another process is at work on the register, or there is no room.
    """
    directory = settings.work_dir / "rebuild"
    with connect() as connection, open_register_to_copy(connection, settings.register):
        shutil.rmtree(directory, ignore_errors=True)  # of one that was killed
        keys = plan_rebuild(kept_keys(settings), newest)
        file = directory / "register.duckdb"
        try:
            for position, key in enumerate(keys, start=1):
                report(f"{key}: {position} of {len(keys)}")
                _import(settings, connect, key, file, report)
            if settings.database.file is not None:
                move_into_place(file, settings.register_file)
                show_to_readers(settings.register_file, settings.database.file, settings.privacy)
            else:
                replace_shared(
                    connection,
                    DuckDBFile(file),
                    settings.database,
                    privacy=settings.privacy,
                    report=report,
                )
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return keys


def _import(
    settings: Settings,
    connect: Connect,
    key: ExtractKey,
    file: Path,
    report: Callable[[str], None],
) -> None:
    zip_file = fetch_zip(settings, key, report)
    check_space_to_import(settings, key, zip_file)
    staging_dir = file.parent / "staging"
    extract = read_extract(zip_file)
    with connect() as connection:
        stage(
            connection,
            settings,
            zip_file,
            extract,
            staging_dir,
            max_faulty_rows=None,  # it was imported before
        )
    with (
        connect() as connection,
        open_register(connection, DuckDBFile(file)) as register,
        register.importing(staging_dir, key) as staged,
    ):
        for batch in staged.batches:
            register.apply(staged, batch)
            report(f"{key}: batch {batch.number} of {len(staged.batches)}")
        complete(register, staged, privacy=settings.privacy)
        register.checkpoint()
    shutil.rmtree(staging_dir)
