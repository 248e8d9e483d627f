"""Where a register lives: a DuckDB file, a DuckLake, a database of MotherDuck.

A file has one writer, on a register of its own, and readers open a published copy. The other two
are *shared*: writers and readers work in one database, and views show published extracts only.
Each kind is a class here, and nothing else asks what kind a place is. DuckDB is loaded with the
first connection only, so that reading the settings stays quick.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from kbo_pipeline.core.environment import S3
from kbo_pipeline.core.errors import (
    NOTHING_PUBLISHED,
    KboError,
    NotReadyError,
    RegisterError,
    SettingsError,
    StorageError,
)

if TYPE_CHECKING:
    import duckdb


WORK = "work"
"""The schema of the register at work where readers work in the same database."""

_MOTHERDUCK_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LAKE_PREFIX = "ducklake:"
_EXPECTED = (
    "expected ducklake:postgres:host=HOST dbname=NAME user=USER or"
    " ducklake:postgresql://USER@HOST:PORT/NAME"
)


class Place(ABC):
    """A place where a register is, or will be."""

    is_shared: ClassVar[bool] = True
    """Whether writers and readers work in one database, without PRIMARY KEY and CHECK."""

    is_compacted: ClassVar[bool] = False
    """Whether `lake.compact` makes it small."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The value of `KBO_DATABASE` that names it."""

    @property
    def file(self) -> Path | None:
        """The one DuckDB file that it is; None where it is none."""
        return None

    @property
    def directory(self) -> Path | None:
        """Where publishing writes; None where that is no directory of ours."""
        return None

    @property
    def search_dir(self) -> Path | None:
        """The directory of its search index, beside it; None where it is no file."""
        return None

    @property
    def length(self) -> int | None:
        """Bytes of all that it holds; None where that is unknown."""
        return None

    @property
    def may_exist(self) -> bool:
        """False where it certainly is not there yet."""
        return True

    @property
    def schema_at_work(self) -> str:
        """The schema of the register at work."""
        return WORK

    def register(self, file: Path) -> "Place":
        """Where the register at work is: `file`, if readers open a copy of it."""
        return self

    @contextmanager
    def sole_writer(self, lock_timeout: float) -> Iterator[None]:
        """Keeps other writers away where that takes a lock; elsewhere two of them conflict.

        Raises:
            StorageError: another process is at work on it.
        """
        yield

    @abstractmethod
    def attach_to_write(self, connection: "duckdb.DuckDBPyConnection", name: str) -> str:
        """Attaches the register, which is made when it is not there.

        Args:
            connection: an in-memory DuckDB.
            name: the name to attach it as.

        Returns:
            The name it is attached as: MotherDuck keeps its own.

        Raises:
            DamagedError: the file is not what was written.
            StorageError: it does not answer.
            SettingsError: `KBO_DATABASE_FILES` is not where its files are.
        """

    @abstractmethod
    def attach_to_read(self, connection: "duckdb.DuckDBPyConnection", name: str) -> str:
        """Attaches the register, whose content stays the same while it is attached.

        Takes and returns what `attach_to_write` does.

        Raises:
            NotReadyError: there is none yet.
            RegisterError: something else is there.
            StorageError: it does not answer.
            SettingsError: `KBO_DATABASE_FILES` is not where its files are.
        """

    def no_register(self) -> KboError:
        """The error where the place opens, and has no tables of ours."""
        return NotReadyError(f"{self}: {NOTHING_PUBLISHED}")  # the first import is on its way

    def unreachable(self, error: "duckdb.Error") -> StorageError | None:
        """The error where it was opened, and its files cannot be read; None when they can."""
        from kbo_pipeline.core import lake

        return lake.files_unreachable(self, error)


@dataclass(frozen=True, slots=True)
class DuckDBFile(Place):
    """A DuckDB file.

    Attributes:
        path: where it is.
    """

    path: Path
    is_shared: ClassVar[bool] = False

    @property
    def file(self) -> Path:
        """Itself."""
        return self.path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def address(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self.path.parent

    @property
    def search_dir(self) -> Path:
        """`kbo.search` beside `kbo.duckdb`."""
        return self.path.with_name(f"{self.path.name.removesuffix('.duckdb')}.search")

    @property
    def length(self) -> int:
        """With its whole history, and without what is only in the write-ahead log."""
        return self.path.stat().st_size

    @property
    def may_exist(self) -> bool:
        """Whether it is there."""
        return self.path.exists()

    @property
    def schema_at_work(self) -> str:
        """The only one."""
        return "main"

    @property
    def lock(self) -> Path:
        """The lock of whoever writes to a register at work."""
        return self.path.with_suffix(".lock")

    def register(self, file: Path) -> "DuckDBFile":
        """Another file."""
        return DuckDBFile(file)

    @contextmanager
    def sole_writer(self, lock_timeout: float) -> Iterator[None]:
        """Holds the lock."""
        from kbo_pipeline.core.files import exclusive_lock

        with exclusive_lock(self.lock, lock_timeout):
            yield

    def attach_to_write(self, connection: "duckdb.DuckDBPyConnection", name: str) -> str:
        """Attaches it."""
        from kbo_pipeline.core import database

        database.attach_file(connection, self.path, name)
        return name

    def attach_to_read(self, connection: "duckdb.DuckDBPyConnection", name: str) -> str:
        """Attaches it; DuckDB's own errors come as they are."""
        from kbo_pipeline.core.sql import literal

        if not self.path.exists():
            raise NotReadyError(f"{self}: {NOTHING_PUBLISHED}")
        if not self.path.is_file():  # DuckDB would wait for a named pipe
            raise RegisterError(f"{self}: not a file; move it away")
        # Without its type, DuckDB would fetch an extension for a file of another database.
        connection.execute(f"ATTACH {literal(self.path)} AS {name} (READ_ONLY, TYPE duckdb)")
        return name

    def no_register(self) -> KboError:
        """The file belongs to another program."""
        return RegisterError(
            f"{self}: a DuckDB file, but not a register of this pipeline; move it away"
        )

    def unreachable(self, error: "duckdb.Error") -> None:
        """It is one file, and was opened."""
        return


@dataclass(frozen=True, slots=True)
class Lake(Place):
    """A DuckLake: its catalog in PostgreSQL, its rows in Parquet files.

    Attributes:
        catalog: how PostgreSQL is reached, as libpq's keywords; without the password.
        password: PostgreSQL's; None where libpq finds one, or none is asked for.
        files: the directory of the Parquet files, absolute, or `s3://BUCKET/PREFIX`; ends in `/`.
        address: all of that but `files`, as it was set.
        s3: how the server of the files is reached; None for a directory.
    """

    catalog: tuple[tuple[str, str], ...]
    password: str | None = field(repr=False)
    files: str
    address: str = field(repr=False)
    s3: S3 | None = None
    is_compacted: ClassVar[bool] = True

    @property
    def directory(self) -> Path | None:
        """Where its files are; None when that is no directory."""
        return None if "://" in self.files else Path(self.files)

    def __str__(self) -> str:
        return f"{_LAKE_PREFIX}postgres:{' '.join(f'{key}={value}' for key, value in self.catalog)}"

    def attach_to_write(self, connection: "duckdb.DuckDBPyConnection", name: str) -> str:
        """Attaches it, once another process that seems to be making it is done."""
        from kbo_pipeline.core import lake

        return lake.attach_lake_to_write(connection, self, name)

    def attach_to_read(self, connection: "duckdb.DuckDBPyConnection", name: str) -> str:
        """Attaches its newest snapshot."""
        from kbo_pipeline.core import lake

        return lake.attach_snapshot(connection, self, name)


@dataclass(frozen=True, slots=True)
class MotherDuck(Place):
    """A database of MotherDuck, whose token is in the environment.

    Attributes:
        name: the database.
    """

    name: str
    password: ClassVar[None] = None

    def __str__(self) -> str:
        return f"md:{self.name}"

    @property
    def address(self) -> str:
        """As it was set."""
        return str(self)

    def attach_to_write(self, connection: "duckdb.DuckDBPyConnection", name: str) -> str:
        """Attaches it under its own name."""
        from kbo_pipeline.core import lake

        return lake.attach_motherduck(connection, self.name)

    def attach_to_read(self, connection: "duckdb.DuckDBPyConnection", name: str) -> str:
        """Attaches it under its own name; what is published meanwhile is seen."""
        from kbo_pipeline.core import lake

        return lake.attach_motherduck(connection, self.name, "READ_ONLY")


def is_shared_address(text: str) -> bool:
    """Tells whether a value of `KBO_DATABASE` names something else than a file."""
    return text.startswith((_LAKE_PREFIX, "md:"))


def shared_place(
    name: str, text: str, files: str | None, s3: S3 | None = None
) -> Lake | MotherDuck:
    """The place that an address names which is no file.

    Args:
        name: the setting that holds the address, for errors.
        text: the address: `ducklake:postgres:...`, `ducklake:postgresql://...` or `md:NAME`.
        files: where a lake's files are, from `lake_files`.
        s3: how an S3 server is reached; None without an account.

    Raises:
        SettingsError: it is malformed; the message does not repeat it, it may hold a password.
    """
    if text.startswith("md:"):
        if not _MOTHERDUCK_NAME.fullmatch(text[3:]):
            raise SettingsError(
                f"{name}: expected md:NAME, a name of letters, digits and _; the token belongs"
                " in MOTHERDUCK_TOKEN"
            )
        return MotherDuck(text[3:])
    keywords = _postgres_keywords(name, text.removeprefix(_LAKE_PREFIX))
    if files is None:
        raise SettingsError(
            "KBO_DATABASE_FILES: a DuckLake needs a directory or s3://BUCKET/PREFIX for its files"
        )
    password = keywords.pop("password", None)
    is_s3 = files.startswith("s3://")
    if is_s3 and s3 is None:
        raise SettingsError(
            "KBO_DATABASE_FILES: s3:// needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if is_s3 and s3 is not None and not _is_web_server(s3.endpoint):
        raise SettingsError("AWS_ENDPOINT_URL: expected https://HOST:PORT or http://HOST:PORT")
    return Lake(tuple(sorted(keywords.items())), password, files, text, s3 if is_s3 else None)


def _is_web_server(endpoint: str | None) -> bool:
    """Tells whether an S3 server's address is one, or none is given: then it is Amazon's."""
    if endpoint is None:
        return True
    parts = urlsplit(endpoint)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc


def _postgres_keywords(name: str, text: str) -> dict[str, str]:
    """Libpq's keywords of an address behind `ducklake:`."""
    from psycopg2 import ProgrammingError  # here: it costs start-up time
    from psycopg2.extensions import parse_dsn

    if text.startswith("postgres:") and not text.startswith("postgres://"):
        text = text.removeprefix("postgres:")
    elif not text.startswith(("postgres://", "postgresql://")):
        raise SettingsError(f"{name}: {_EXPECTED}")
    try:
        keywords: Mapping[str, str] = parse_dsn(text)
    except ProgrammingError:  # it may say the password
        raise SettingsError(f"{name}: {_EXPECTED}") from None
    if not keywords.get("dbname"):
        raise SettingsError(f"{name}: no dbname; {_EXPECTED}")
    return dict(keywords)


def lake_files(text: str, root: Path) -> str:
    """Where a lake's files are: a directory with a slash at its end, or `s3://BUCKET/PREFIX/`.

    Args:
        text: as it was set.
        root: from which a relative directory counts.

    Raises:
        SettingsError: it is malformed.
    """
    if "://" not in text:
        return f"{root / Path(text).expanduser()}".rstrip("/") + "/"
    parts = urlsplit(text)
    if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or parts.query:
        raise SettingsError(
            "KBO_DATABASE_FILES: expected a directory or s3://BUCKET/PREFIX; keys belong in"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return text.rstrip("/") + "/"
