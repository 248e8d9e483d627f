"""Where a register lives: a DuckDB file, a DuckLake, a database of MotherDuck. No connection.

A file has one writer, on a register of its own, and readers open a published copy. The other two
are *shared*: writers and readers work in one database, and views show published extracts only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from kbo_pipeline.core.errors import SettingsError

_MOTHERDUCK_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LAKE_PREFIX = "ducklake:"
_EXPECTED = (
    "expected ducklake:postgres:host=HOST dbname=NAME user=USER or"
    " ducklake:postgresql://USER@HOST:PORT/NAME"
)


@dataclass(frozen=True, slots=True)
class S3:
    """How an S3 server is reached.

    Attributes:
        key, secret: of the account (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`).
        token: of a session (`AWS_SESSION_TOKEN`); None for an account that lasts.
        region: where the bucket is (`AWS_REGION`).
        endpoint: the address of a server that is not Amazon's (`AWS_ENDPOINT_URL`); None for that.
    """

    key: str
    secret: str = field(repr=False)
    token: str | None = field(repr=False)
    region: str
    endpoint: str | None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that say so."""
        values = {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_SESSION_TOKEN": self.token,
            "AWS_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Lake:
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

    @property
    def directory(self) -> Path | None:
        """Where its files are; None when that is no directory."""
        return None if "://" in self.files else Path(self.files)

    def __str__(self) -> str:
        return f"{_LAKE_PREFIX}postgres:{' '.join(f'{key}={value}' for key, value in self.catalog)}"


@dataclass(frozen=True, slots=True)
class MotherDuck:
    """A database of MotherDuck, whose token is in the environment.

    Attributes:
        name: the database.
    """

    name: str

    def __str__(self) -> str:
        return f"md:{self.name}"

    @property
    def address(self) -> str:
        """As it was set."""
        return str(self)


Shared = Lake | MotherDuck
"""A place where writers and readers work in one database."""

Place = Path | Lake | MotherDuck
"""Any place; a path is a DuckDB file."""


def is_shared_address(text: str) -> bool:
    """Tells whether a value of `KBO_DATABASE` names something else than a file."""
    return text.startswith((_LAKE_PREFIX, "md:"))


def shared_place(name: str, text: str, files: str | None, s3: S3 | None = None) -> Shared:
    """The shared place that an address names.

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
                " into MOTHERDUCK_TOKEN"
            )
        return MotherDuck(text[3:])
    known = _postgres_keywords(name, text.removeprefix(_LAKE_PREFIX))
    if files is None:
        raise SettingsError(
            "KBO_DATABASE_FILES: a DuckLake needs a directory or s3://BUCKET/PREFIX for its files"
        )
    password = known.pop("password", None)
    is_s3 = files.startswith("s3://")
    if is_s3 and s3 is None:
        raise SettingsError(
            "KBO_DATABASE_FILES: s3:// needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if is_s3 and s3 is not None and not _is_web_server(s3.endpoint):
        raise SettingsError("AWS_ENDPOINT_URL: expected https://HOST:PORT or http://HOST:PORT")
    return Lake(tuple(sorted(known.items())), password, files, text, s3 if is_s3 else None)


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
            "KBO_DATABASE_FILES: expected a directory or s3://BUCKET/PREFIX; keys belong into"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return text.rstrip("/") + "/"
