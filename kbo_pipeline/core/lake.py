"""DuckLake and MotherDuck: attached, with extensions that are never downloaded, and kept small."""

import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

import duckdb

from kbo_pipeline.core.environment import S3, is_direct
from kbo_pipeline.core.errors import (
    NOTHING_PUBLISHED,
    NotReadyError,
    RegisterError,
    SettingsError,
    StorageError,
)
from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.text import first_line

_WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds between attempts to attach a lake that another process seems to be making."""

_CONNECT_SECONDS = "10"

_CATALOG_SCHEMA = "kbo"
"""The schema in PostgreSQL that holds the lake's catalog: Dagster's tables may be beside it."""


class LakePlace(Protocol):
    """What this module needs of a `places.Lake`; that module stands above this one."""

    @property
    def catalog(self) -> tuple[tuple[str, str], ...]:
        """How PostgreSQL is reached, as libpq's keywords."""

    @property
    def password(self) -> str | None:
        """PostgreSQL's."""

    @property
    def files(self) -> str:
        """Where the Parquet files are."""

    @property
    def s3(self) -> S3 | None:
        """How their server is reached."""


class Compactable(Protocol):
    """What this module needs of a `places.Place` that is to be compacted."""

    is_compacted: ClassVar[bool]

    def attach_to_write(self, connection: duckdb.DuckDBPyConnection, name: str) -> str:
        """Attaches it."""


class _BeingMadeError(StorageError):
    """A lake cannot be made: another process is making it, or PostgreSQL refuses."""


def attach_lake_to_write(connection: duckdb.DuckDBPyConnection, place: LakePlace, name: str) -> str:
    """Attaches a lake, which is made when it is not there; see `Place.attach_to_write`."""
    for seconds in _WAITS:
        try:
            return attach_lake(connection, place, name)
        except _BeingMadeError:
            time.sleep(seconds)
    return attach_lake(connection, place, name)


def attach_snapshot(connection: duckdb.DuckDBPyConnection, place: LakePlace, name: str) -> str:
    """Attaches a lake as it is now; see `Place.attach_to_read`."""
    attach_lake(connection, place, name, "READ_ONLY")
    ((snapshot,),) = connection.execute(f"SELECT id FROM {name}.current_snapshot()").fetchall()
    connection.execute(f"DETACH {name}")
    return attach_lake(connection, place, name, f"READ_ONLY, SNAPSHOT_VERSION {int(snapshot)}")


def attach_lake(
    connection: duckdb.DuckDBPyConnection, place: LakePlace, name: str, options: str = ""
) -> str:
    """Attaches a lake with options of ATTACH."""
    _make_secrets(connection, place, name)
    _attach(connection, place, f"ATTACH 'ducklake:kbo_lake_{name}' AS {name}", options)
    return name


def attach_motherduck(connection: duckdb.DuckDBPyConnection, name: str, options: str = "") -> str:
    """Attaches a database of MotherDuck, under its name, with options of ATTACH."""
    load_extension(connection, "motherduck")
    address = f"md:{name}"
    _attach(connection, address, f"ATTACH {literal(address)}", options)
    return name


def _attach(
    connection: duckdb.DuckDBPyConnection, place: object, statement: str, options: str
) -> None:
    try:
        connection.execute(statement + (f" ({options})" if options else ""))
    except duckdb.Error as error:
        raise _explained(place, error) from None


def _make_secrets(connection: duckdb.DuckDBPyConnection, place: LakePlace, name: str) -> None:
    """Stores how the lake is reached as secrets: a password in ATTACH would be shown by it."""
    for extension in ("postgres_scanner", "ducklake"):
        load_extension(connection, extension)
    if place.s3 is not None:
        load_extension(connection, "httpfs")
        if place.s3.endpoint is not None and is_direct(urlsplit(place.s3.endpoint).hostname):
            connection.execute("SET http_proxy = ''")  # which is HTTP_PROXY; it knows no NO_PROXY
        connection.execute(_s3_secret(place.s3, place.files, name))
    password = f", PASSWORD {literal(place.password)}" if place.password is not None else ""
    connection.execute(
        f"CREATE OR REPLACE TEMPORARY SECRET kbo_catalog_{name} (TYPE postgres{password})"
    )
    connection.execute(
        f"CREATE OR REPLACE TEMPORARY SECRET kbo_lake_{name} (TYPE ducklake,"
        f" METADATA_PATH {literal(_connection_string(place))},"
        f" METADATA_SCHEMA {literal(_CATALOG_SCHEMA)}, DATA_PATH {literal(place.files)},"
        f" METADATA_PARAMETERS MAP {{'TYPE': 'postgres', 'SECRET': 'kbo_catalog_{name}'}})"
    )


def _s3_secret(s3: S3, files: str, name: str) -> str:
    values = {"KEY_ID": s3.key, "SECRET": s3.secret, "REGION": s3.region, "SCOPE": files}
    if s3.token is not None:
        values["SESSION_TOKEN"] = s3.token
    use_ssl = True
    if s3.endpoint is not None:
        parts = urlsplit(s3.endpoint)
        values |= {"ENDPOINT": f"{parts.netloc}{parts.path}".rstrip("/"), "URL_STYLE": "path"}
        use_ssl = parts.scheme != "http"
    options = "".join(f", {key} {literal(value)}" for key, value in values.items())
    options += f", USE_SSL {use_ssl}"
    return f"CREATE OR REPLACE TEMPORARY SECRET kbo_files_{name} (TYPE s3{options})"


def _connection_string(place: LakePlace) -> str:
    """The connection string, quoted as libpq wants it; with a time limit for a silent server."""
    values = {"connect_timeout": _CONNECT_SECONDS, **dict(place.catalog)}
    escaped = ((k, v.replace("\\", "\\\\").replace("'", "\\'")) for k, v in values.items())
    return " ".join(f"{key}='{value}'" for key, value in escaped)


def _explained(place: object, error: duckdb.Error) -> Exception:
    reason = first_line(error)
    if "Failed to initialize DuckLake" in reason:
        return _BeingMadeError(
            f"{place}: cannot be created ({reason}); try again, or see PostgreSQL's log"
        )
    if "creating a new DuckLake is explicitly disabled" in reason:
        return NotReadyError(f"{place}: {NOTHING_PUBLISHED}")
    if "DATA_PATH" in reason:
        return SettingsError(
            f"KBO_DATABASE_FILES: not the files of the DuckLake at {place} ({reason}); name those"
        )
    if isinstance(error, duckdb.IOException | duckdb.HTTPException):
        return StorageError(f"{place}: does not answer ({reason}); kbo doctor says more")
    return RegisterError(f"{place}: {reason}")


def files_unreachable(place: object, error: duckdb.Error) -> StorageError | None:
    """The error where the catalog of a lake answers, and its files cannot be read."""
    if not isinstance(error, duckdb.IOException):
        return None
    reason = first_line(error)
    return StorageError(f"{place}: its files do not answer ({reason}); kbo doctor says more")


KEEP_DAYS = 7
"""Days for which a reader may use the snapshot that it has opened."""

_REGISTER = "register"

# In this order: what one leaves behind, a later one removes.
_STEPS = (
    ("inlined_flushed", f"CALL ducklake_flush_inlined_data('{_REGISTER}')"),
    ("files_rewritten", f"CALL ducklake_rewrite_data_files('{_REGISTER}')"),
    ("files_merged", f"CALL ducklake_merge_adjacent_files('{_REGISTER}')"),
    ("snapshots_expired", f"CALL ducklake_expire_snapshots('{_REGISTER}', older_than => {{then}})"),
    ("files_removed", f"CALL ducklake_cleanup_old_files('{_REGISTER}', older_than => {{then}})"),
    (
        "orphans_removed",
        f"CALL ducklake_delete_orphaned_files('{_REGISTER}', older_than => {{then}})",
    ),
)


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compacting did.

    Attributes:
        counts: by step, how many lines DuckLake has answered: tables, snapshots or files.
        files: data files of the register afterwards.
        bytes: their length.
    """

    counts: dict[str, int]
    files: int
    bytes: int


def compact(
    connection: duckdb.DuckDBPyConnection, place: Compactable, *, keep_days: int = KEEP_DAYS
) -> Compaction:
    """Compacts a lake; what readers see stays as it is.

    Readers of a snapshot older than `keep_days` have to open the register again. Files of killed
    writers are removed too, once they are as old. Another writer may be at work meanwhile: one of
    the two has to try again.

    Args:
        connection: an in-memory DuckDB.
        place: one that is compacted.
        keep_days: see above; 0 and more.

    Raises:
        SettingsError: it is no lake.
        StorageError: it does not answer.
        duckdb.TransactionException: another writer has committed first.
    """
    if not place.is_compacted:
        raise SettingsError(f"KBO_DATABASE: {place} is not a DuckLake; only that is compacted")
    then = f"now() - INTERVAL {int(keep_days)} DAY"
    name = place.attach_to_write(connection, _REGISTER)
    try:
        counts = {
            step: len(connection.execute(statement.format(then=then)).fetchall())
            for step, statement in _STEPS
        }
        ((files, length),) = connection.execute(
            "SELECT sum(file_count)::BIGINT, sum(file_size_bytes)::BIGINT"
            f" FROM ducklake_table_info('{_REGISTER}')"
        ).fetchall()
    finally:
        connection.execute(f"DETACH {name}")
    return Compaction(counts, files or 0, length or 0)


def load_extension(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Loads an extension into a connection: from its package, or one that DuckDB has already.

    Args:
        connection: where it is loaded.
        name: as DuckDB names it.

    Raises:
        StorageError: it is not installed; says what to install.
    """
    file = _packaged(name)
    connection.execute("SET autoinstall_known_extensions = false")  # LOAD would download it
    try:
        connection.execute(f"LOAD {literal(file) if file is not None else name}")
    except duckdb.Error as error:
        reason = first_line(error)
        raise StorageError(
            f"DuckDB {duckdb.__version__} cannot load its extension {name} ({reason}); pip install"
            f" duckdb-extension-{name.replace('_', '-')}=={duckdb.__version__}"
        ) from None


def _packaged(name: str) -> Path | None:
    """The file of an extension in its package, of the version of DuckDB that runs."""
    spec = find_spec(f"duckdb_extension_{name}")
    for directory in (spec.submodule_search_locations or []) if spec is not None else []:
        version = f"v{duckdb.__version__}"
        file = Path(directory) / "extensions" / version / f"{name}.duckdb_extension"
        if file.is_file():
            return file
    return None
