"""Attaching a register that writers and readers share: a DuckLake, or MotherDuck. No Dagster."""

import time
from urllib.parse import urlsplit

import duckdb

from kbo_pipeline.core.database import literal
from kbo_pipeline.core.errors import NotReadyError, RegisterError, SettingsError, StorageError
from kbo_pipeline.core.extensions import load_extension
from kbo_pipeline.core.places import S3, Lake, MotherDuck, Shared
from kbo_pipeline.core.settings import is_direct
from kbo_pipeline.core.text import first_line

NOTHING_PUBLISHED = "nothing is published yet; kbo import a Full"

_WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds between attempts to attach a lake that another process seems to be making."""

_CONNECT_SECONDS = "10"

_CATALOG_SCHEMA = "kbo"
"""The schema in PostgreSQL that holds the lake's catalog: Dagster's tables may be beside it."""


class _BeingMadeError(StorageError):
    """A lake cannot be made: another process is making it, or PostgreSQL refuses."""


def attach_to_write(connection: duckdb.DuckDBPyConnection, place: Shared, name: str) -> str:
    """Attaches a shared register for writing; it is made when it is not there.

    Args:
        connection: an in-memory DuckDB.
        place: where the register is.
        name: what it is to be called.

    Returns:
        What it is called: MotherDuck keeps its own name.

    Raises:
        StorageError: it does not answer.
        SettingsError: `KBO_DATABASE_FILES` is not where its files are.
    """
    for seconds in _WAITS:
        try:
            return attach(connection, place, name, "")
        except _BeingMadeError:
            time.sleep(seconds)
    return attach(connection, place, name, "")


def attach_to_read(connection: duckdb.DuckDBPyConnection, place: Shared, name: str) -> str:
    """Attaches a shared register for reading; a lake stays what it is while it is attached.

    Takes and returns what `attach_to_write` does.

    Raises:
        NotReadyError: there is none yet.
        StorageError: it does not answer.
        SettingsError: `KBO_DATABASE_FILES` is not where its files are.
    """
    found = attach(connection, place, name, "READ_ONLY")
    if isinstance(place, MotherDuck):
        return found
    rows = connection.execute(f"SELECT id FROM {found}.current_snapshot()").fetchall()
    detach(connection, found)
    return attach(connection, place, name, f"READ_ONLY, SNAPSHOT_VERSION {int(rows[0][0])}")


def detach(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Detaches what was attached under a name."""
    connection.execute("USE memory")
    connection.execute(f"DETACH {name}")


def attach(connection: duckdb.DuckDBPyConnection, place: Shared, name: str, options: str) -> str:
    """Attaches a shared register with options of ATTACH; takes and returns what the others do."""
    if isinstance(place, MotherDuck):
        load_extension(connection, "motherduck")
        name = place.name
        statement = f"ATTACH {literal(place.address)}"
    else:
        _make_secrets(connection, place, name)
        statement = f"ATTACH 'ducklake:kbo_lake_{name}' AS {name}"
    try:
        connection.execute(statement + (f" ({options})" if options else ""))
    except duckdb.Error as error:
        raise _explained(place, error) from None
    return name


def _make_secrets(connection: duckdb.DuckDBPyConnection, place: Lake, name: str) -> None:
    """Tells the connection how the lake is reached; a password in ATTACH would be shown by it."""
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
    """The statement that tells DuckDB how the files are reached."""
    values = {"KEY_ID": s3.key, "SECRET": s3.secret, "REGION": s3.region, "SCOPE": files}
    if s3.token is not None:
        values["SESSION_TOKEN"] = s3.token
    use_ssl = True
    if s3.endpoint is not None:
        parts = urlsplit(s3.endpoint)
        values |= {"ENDPOINT": f"{parts.netloc}{parts.path}".rstrip("/"), "URL_STYLE": "path"}
        use_ssl = parts.scheme != "http"
    said = "".join(f", {key} {literal(value)}" for key, value in values.items())
    return f"CREATE OR REPLACE TEMPORARY SECRET kbo_files_{name} (TYPE s3{said}, USE_SSL {use_ssl})"


def _connection_string(place: Lake) -> str:
    """Libpq's connection string, quoted as it wants it; a silent server is not waited for."""
    values = {"connect_timeout": _CONNECT_SECONDS, **dict(place.catalog)}
    escaped = ((k, v.replace("\\", "\\\\").replace("'", "\\'")) for k, v in values.items())
    return " ".join(f"{key}='{value}'" for key, value in escaped)


def _explained(place: Shared, error: duckdb.Error) -> Exception:
    said = first_line(error)
    if "Failed to initialize DuckLake" in said:
        return _BeingMadeError(f"{place}: cannot be made ({said}); once more, or see PostgreSQL")
    if "creating a new DuckLake is explicitly disabled" in said:
        return NotReadyError(f"{place}: {NOTHING_PUBLISHED}")
    if "DATA_PATH" in said:
        return SettingsError(
            f"KBO_DATABASE_FILES: not the files of the DuckLake at {place} ({said}); name those"
        )
    if isinstance(error, duckdb.IOException | duckdb.HTTPException):
        return StorageError(f"{place}: does not answer ({said}); kbo doctor says more")
    return RegisterError(f"{place}: {said}")


def files_unreachable(place: Shared, error: duckdb.IOException) -> StorageError:
    """The error where the catalog of a lake answers, and its files cannot be read."""
    said = first_line(error)
    return StorageError(f"{place}: its files do not answer ({said}); kbo doctor says more")


WORK = "work"
"""The schema of the register at work."""
