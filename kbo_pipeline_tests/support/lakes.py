"""DuckLakes for tests: each with a catalog of its own in one embedded PostgreSQL server.

`TEST_DATABASE=ducklake` lets tests work on such a one instead of files: `make test-lake`.
"""

import atexit
import functools
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import psycopg2
from sqlalchemy import make_url

from kbo_pipeline.core.environment import S3
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.places import Lake, lake_files, shared_place
from kbo_pipeline.operate.processes import postgres

_numbers = itertools.count(1)


ASKED_FOR = os.environ.get("TEST_DATABASE") == "ducklake"
"""Whether tests that work on files, unless told otherwise, are to work on lakes."""


@functools.cache
def server_directory() -> Path:
    """The directory of the server; it goes when the server has ended."""
    directory = Path(tempfile.mkdtemp(prefix="kbo-lakes-"))

    def end() -> None:
        postgres._leave_all()
        shutil.rmtree(directory, ignore_errors=True)

    atexit.register(end)
    return directory


def lake_of(directory: Path) -> Lake:
    """The lake of a data directory: the same for all who ask, in other processes too."""
    files, note = directory / "lake", directory / "lake_address"
    if note.exists():
        place = shared_place("KBO_DATABASE", note.read_text(), lake_files(str(files), files))
        assert isinstance(place, Lake)
        return place
    lake = new_lake(files)
    make_private(directory)
    note.write_text(lake.address)
    return lake


def new_lake(files: Path | str, s3: S3 | None = None) -> Lake:
    """A lake in which nothing is yet; the server starts when it does not run.

    Args:
        files: where the lake's files go: a directory, or `s3://BUCKET/PREFIX`.
        s3: how the latter's server is reached.
    """
    url = make_url(postgres.embedded_server_url(server_directory()))
    host, name = str(url.query["host"]), f"lake_{os.getpid()}_{next(_numbers)}"
    connection = psycopg2.connect(host=host, user=url.username, dbname="postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    address = f"ducklake:postgres:host={host} user={url.username} dbname={name}"
    place = shared_place("KBO_DATABASE", address, lake_files(str(files), Path("/")), s3)
    assert isinstance(place, Lake)
    return place


def variables(lake: Lake) -> dict[str, str]:
    """The variables that make a lake the register."""
    account = lake.s3.environment if lake.s3 is not None else {}
    return {
        "KBO_DATABASE": lake.address,
        "KBO_DATABASE_FILES": lake.files,
        **account,
    }
