"""Export: the current tables as Parquet, in a directory that is complete or absent.

The profile of each enterprise is included: Parquet has no views, and most people ask for it.
"""

import datetime
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import duckdb

from kbo_pipeline.core.database import connect
from kbo_pipeline.core.disk_space import check_space_to_export
from kbo_pipeline.core.errors import ExportError, NotReadyError
from kbo_pipeline.core.files import exclusive_lock, replace_directory
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.tables import Privacy
from kbo_pipeline.read.published import open_published
from kbo_pipeline.read.state_sql import fill_shown
from kbo_pipeline.read.views import export_queries, source

MANIFEST = "manifest.json"
FORMAT = "kbo_pipeline export 1"
"""How one of our manifests is recognized."""

LICENCE = (
    "Name the source and its date wherever the data is shown. No direct marketing with personal"
    " data. Terms: KBO Open Data, FPS Economy."
)


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One Parquet file of an export, by name; with its columns and their DuckDB types, in order."""

    file: str
    rows: int
    bytes: int
    sha256: str
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Export:
    """What an export holds, as in its manifest: its files, by the name of the table."""

    extract: str
    snapshot_date: datetime.date
    source: str
    privacy: Privacy
    tables: Mapping[str, ExportedFile]

    @property
    def bytes(self) -> int:
        """The length of all Parquet files."""
        return sum(table.bytes for table in self.tables.values())

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        return (
            {"format": FORMAT, "licence": LICENCE}
            | asdict(self)
            | {"snapshot_date": str(self.snapshot_date)}
        )


def write_export(
    settings: Settings,
    directory: Path,
    *,
    extract: str | None = None,
    report: Callable[[str, int, int], None] = lambda name, done, total: None,
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
    _check_replaceable(directory)
    with (
        exclusive_lock(settings.work_dir / "export.lock"),
        connect(settings) as connection,
        open_published(connection, settings.database),
    ):
        row = connection.execute(source(settings.privacy)).fetchone()
        if row is None:
            raise NotReadyError(f"{settings.database}: no extract is published; kbo import a Full")
        newest, _, snapshot_date, source_line, _ = row
        if extract not in (None, newest):
            raise NotReadyError(
                f"{extract}: only the newest published extract is exported: materialize {newest}"
            )
        check_space_to_export(directory, settings.database, settings.temporary_dir)
        if settings.privacy != "full":
            connection.execute(*fill_shown(settings.privacy, "TEMP TABLE"))
        queries = export_queries(settings.privacy)
        tables = {}
        with replace_directory(directory) as unfinished:
            unfinished.chmod(0o755)  # it is made to be handed on; its files have the umask's mode
            for done, (name, query) in enumerate(queries.items()):
                report(name, done, len(queries))
                tables[name] = _write(connection, query, unfinished / f"{name}.parquet")
            export = Export(newest, snapshot_date, source_line, settings.privacy, tables)
            text = json.dumps(export.to_json(), indent=2, ensure_ascii=False)
            (unfinished / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
    return export


def _write(connection: duckdb.DuckDBPyConnection, query: str, file: Path) -> ExportedFile:
    columns = connection.execute(f"DESCRIBE {query}").fetchall()
    ((rows,),) = connection.execute(
        f"COPY (\n{query}\n)\nTO {literal(file)}\n(FORMAT parquet, COMPRESSION zstd)"
    ).fetchall()
    with file.open("rb") as stream:
        sha256 = file_digest(stream, "sha256").hexdigest()
    types = {name: kind for name, kind, *_ in columns}
    return ExportedFile(file.name, rows, file.stat().st_size, sha256, types)


def _check_replaceable(directory: Path) -> None:
    """Makes sure that only one of our exports is replaced."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ExportError(f"{directory}: a file is there; name a directory")
    there = {path.name for path in directory.iterdir()}
    foreign = sorted(there - _own_files(directory / MANIFEST))
    if foreign:
        raise ExportError(
            f"{directory}: {foreign[0]} in it is not of an export; name another directory, or move"
            " it away"
        )


def _own_files(manifest: Path) -> set[str]:
    """The files that a manifest lists; none if it is not one of ours."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["format"] == FORMAT:
            return {MANIFEST, *(str(table["file"]) for table in content["tables"].values())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not our manifest, so its directory is not replaced
    return set()
