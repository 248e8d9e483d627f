"""`manifest.json`: what a directory of Parquet files holds, written and read back.

There are two kinds of directories, exports of all rows and deltas between two states. What is read
back may be of anybody, so each value is checked.
"""

import datetime
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, TypeVar, get_args

import duckdb

from kbo_pipeline.core.errors import ExportError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.tables import ALL_TABLES, Privacy
from kbo_pipeline.read.content import Content, Contents, hash_of
from kbo_pipeline.read.views import PROFILE

MANIFEST = "manifest.json"
FORMAT = "kbo_pipeline export 1"
"""How one of our manifests is recognized."""

DELTA_FORMAT = "kbo_pipeline delta 1"
"""How that of a delta is recognized."""

LICENCE = (
    "Name the source and its date wherever the data is shown. No direct marketing with personal"
    " data. Terms: KBO Open Data, FPS Economy."
)

_LONGEST = 1 << 20
"""Bytes of a manifest; ours have some thousand."""


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One Parquet file of an export or delta, by name.

    Attributes:
        columns: their DuckDB types, in order.
        row_hash: the sum of the hashes of its rows, as docs/certainty.md defines it; None in a
            delta, and of the profile, which follows from the tables.
        added: rows that a delta adds; None in an export, as `removed`.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    columns: Mapping[str, str]
    row_hash: str | None = None
    added: int | None = None
    removed: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """The rows of all tables at an extract, as an export at that extract holds them.

    Attributes:
        extract: its key.
        snapshot_date: the day whose data it is.
        published_at: when it was published; another time if it was imported again.
        contents: what the tables hold.
    """

    extract: str
    snapshot_date: datetime.date
    published_at: datetime.datetime
    contents: Contents

    @property
    def content_hash(self) -> str:
        """What identifies them."""
        return hash_of(self.contents)

    def to_json(self) -> dict[str, Any]:
        """As a delta's manifest has it."""
        return {
            "extract": self.extract,
            "extract_number": ExtractKey.parse(self.extract).number,
            "snapshot_date": str(self.snapshot_date),
            "published_at": self.published_at.isoformat(),
            "content_hash": self.content_hash,
            "tables": {
                name: {"rows": content.rows, "row_hash": str(content.row_hash)}
                for name, content in self.contents.items()
            },
        }


@dataclass(frozen=True, slots=True)
class About:
    """What is known of the newest state of an export or delta.

    Attributes:
        source: the line to show with the data.
        privacy: who is left out.
        proven_extract_number: the newest extract at which the register was equal to KBO's Full;
            None when nobody has compared.
        proven_at: when that was.
    """

    source: str
    privacy: Privacy
    proven_extract_number: int | None = None
    proven_at: datetime.datetime | None = None

    def to_json(self, form: str) -> dict[str, Any]:
        """How a manifest of a format begins."""
        moment = self.proven_at and self.proven_at.isoformat(timespec="seconds")
        return {"format": form, "licence": LICENCE} | asdict(self) | {"proven_at": moment}


@dataclass(frozen=True, slots=True)
class Export:
    """What an export holds, as in its manifest: its files, by the name of the table."""

    state: State
    about: About
    tables: Mapping[str, ExportedFile]

    @property
    def extract(self) -> str:
        """The key of the extract."""
        return self.state.extract

    @property
    def bytes(self) -> int:
        """The length of all Parquet files."""
        return sum(table.bytes for table in self.tables.values())

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        return self.about.to_json(FORMAT) | {
            "extract": self.extract,
            "snapshot_date": str(self.state.snapshot_date),
            "published_at": self.state.published_at.isoformat(),
            "content_hash": self.state.content_hash,
            "tables": {name: _without_none(file) for name, file in self.tables.items()},
        }


@dataclass(frozen=True, slots=True)
class Delta:
    """What turns one state into another, as in its manifest: its files, by the name of the table.

    Attributes:
        base: the state before.
        target: the state after it.
        about: the state after it.
    """

    base: State
    target: State
    about: About
    tables: Mapping[str, ExportedFile]

    @property
    def added(self) -> int:
        """Rows that are added, in all tables."""
        return sum(table.added or 0 for table in self.tables.values())

    @property
    def removed(self) -> int:
        """Rows that are removed, in all tables."""
        return sum(table.removed or 0 for table in self.tables.values())

    @property
    def bytes(self) -> int:
        """The length of all Parquet files."""
        return sum(table.bytes for table in self.tables.values())

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        return self.about.to_json(DELTA_FORMAT) | {
            "from": self.base.to_json(),
            "to": self.target.to_json(),
            "tables": {name: _without_none(file) for name, file in self.tables.items()},
        }


def _without_none(file: ExportedFile) -> dict[str, Any]:
    return {name: value for name, value in asdict(file).items() if value is not None}


def write_parquet(
    connection: duckdb.DuckDBPyConnection, query: str, file: Path, **others: Any
) -> ExportedFile:
    """Writes the rows of a query, compressed with ZSTD; `others` are fields of the result."""
    columns = connection.execute(f"DESCRIBE {query}").fetchall()
    ((rows,),) = connection.execute(
        f"COPY (\n{query}\n)\nTO {literal(file)}\n(FORMAT parquet, COMPRESSION zstd)"
    ).fetchall()
    types = {name: kind for name, kind, *_ in columns}
    return ExportedFile(file.name, rows, file.stat().st_size, sha256_of(file), types, **others)


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def write_manifest(directory: Path, content: Export | Delta) -> None:
    """Writes the manifest into a directory that holds the files already."""
    text = json.dumps(content.to_json(), indent=2, ensure_ascii=False)
    (directory / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def check_replaceable(directory: Path, form: str) -> None:
    """Makes sure that a directory is not there, is empty, or holds what we wrote, and only that.

    Args:
        directory: what is to be replaced.
        form: the format of the manifest, which must be the same.

    Raises:
        ExportError: something else is there.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ExportError(f"{directory}: a file is there; name a directory")
    there = {path.name for path in directory.iterdir()}
    foreign = sorted(there - _own_files(directory / MANIFEST, form))
    if foreign:
        what = "an export" if form == FORMAT else "a delta"
        raise ExportError(
            f"{directory}: {foreign[0]} in it is not of {what}; name another directory, or move"
            " it away"
        )


def _own_files(manifest: Path, form: str) -> set[str]:
    """The files that a manifest lists; none if it is not one of ours."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["format"] == form:
            return {MANIFEST, *(str(table["file"]) for table in content["tables"].values())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # not our manifest, so its directory is not replaced
    return set()


def read_export(directory: Path) -> Export:
    """What the manifest of an export says; its files are not read.

    Raises:
        ExportError: it is no export, or of a version that kept no content hash.
    """
    return _read(directory, "an export", _export_of)


def read_delta(directory: Path) -> Delta:
    """What the manifest of a delta says; its files are not read.

    Raises:
        ExportError: it is no delta.
    """
    return _read(directory, "a delta", _delta_of)


_T = TypeVar("_T", Export, Delta)


def _read(directory: Path, what: str, parse: Callable[[Any], _T]) -> _T:
    try:
        with (directory / MANIFEST).open("rb") as stream:
            text = stream.read(_LONGEST + 1)
    except OSError as error:
        raise ExportError(f"{directory / MANIFEST}: {error.strerror}; name {what}") from None
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"longer than {_LONGEST:,} bytes")
        return parse(json.loads(text))
    except KeyError as error:
        reason = f"it has no {error}"
    except (ValueError, TypeError, AttributeError, ExportError, RecursionError) as error:
        reason = str(error)
    raise ExportError(f"{directory / MANIFEST}: not that of {what} ({reason}); get it anew")


def _export_of(content: Any) -> Export:
    _expect(content["format"] == FORMAT, "format")
    tables = _files_of(content["tables"], (*_NAMES, PROFILE))
    contents = {
        name: Content(tables[name].rows, _sum_of(content["tables"][name], "row_hash"))
        for name in _NAMES
    }
    state = _state_of(content, contents)
    return Export(state, _about_of(content), tables)


def _delta_of(content: Any) -> Delta:
    _expect(content["format"] == DELTA_FORMAT, "format")
    base, target = (
        _state_of(
            content[side],
            {
                name: Content(
                    _count_of(content[side]["tables"][name], "rows"),
                    _sum_of(content[side]["tables"][name], "row_hash"),
                )
                for name in _NAMES
            },
        )
        for side in ("from", "to")
    )
    tables = _files_of(content["tables"], _NAMES)
    for name, file in tables.items():
        added, removed = (_count_of(content["tables"][name], which) for which in _CHANGES)
        _expect(file.rows == added + removed, f"{name}: rows")
    return Delta(base, target, _about_of(content), tables)


_NAMES = tuple(table.name for table in ALL_TABLES)
_CHANGES = ("added", "removed")


def _files_of(tables: Any, names: tuple[str, ...]) -> dict[str, ExportedFile]:
    _expect({*tables} == {*names}, "tables")
    return {name: _file_of(tables[name], name) for name in names}


def _file_of(table: Any, name: str) -> ExportedFile:
    _expect(table["file"] == f"{name}.parquet", f"{name}: file")  # so that it leads nowhere else
    _expect(re.fullmatch("[0-9a-f]{64}", table["sha256"]) is not None, f"{name}: sha256")
    columns = {str(column): str(kind) for column, kind in table["columns"].items()}
    changes = {which: _count_of(table, which) for which in _CHANGES if which in table}
    row_hash = str(_sum_of(table, "row_hash")) if "row_hash" in table else None
    return ExportedFile(
        table["file"],
        _count_of(table, "rows"),
        _count_of(table, "bytes"),
        table["sha256"],
        columns,
        row_hash=row_hash,
        **changes,
    )


def _state_of(content: Any, contents: Contents) -> State:
    key = str(ExtractKey.parse(content["extract"]))
    state = State(
        key,
        datetime.date.fromisoformat(content["snapshot_date"]),
        datetime.datetime.fromisoformat(content["published_at"]),
        contents,
    )
    _expect(content["content_hash"] == state.content_hash, f"{key}: content_hash")
    return state


def _about_of(content: Any) -> About:
    _expect(content["privacy"] in get_args(Privacy), "privacy")
    _expect(isinstance(content["source"], str), "source")
    number, moment = content["proven_extract_number"], content["proven_at"]
    return About(
        content["source"],
        content["privacy"],
        None if number is None else _count_of(content, "proven_extract_number"),
        None if moment is None else datetime.datetime.fromisoformat(moment),
    )


def _count_of(content: Any, name: str) -> int:
    value = content[name]
    _expect(type(value) is int and 0 <= value < 1 << 63, name)
    return int(value)


def _sum_of(content: Any, name: str) -> int:
    value = content[name]
    _expect(isinstance(value, str) and re.fullmatch("[0-9]{1,40}", value) is not None, name)
    return int(value)


def _expect(is_so: bool, what: str) -> None:
    if not is_so:
        raise ValueError(f"its {what} is another")
