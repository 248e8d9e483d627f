"""What readers open: the published register, also one of an earlier version.

It is a byte-by-byte copy of the register at work when it was published, unless `KBO_PRIVACY` has
changed since: then its views are others.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, cast

import duckdb

from kbo_pipeline.core.database import Database, detach, is_damage
from kbo_pipeline.core.errors import DamagedError, NotReadyError, RegisterError, StorageError
from kbo_pipeline.core.extracts import PublishedState, read_published_state
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.schema import (
    VERSION_TABLE,
    check_version,
    create,
    has_ledger,
    layout_of,
    show_older,
    version_of,
)
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.core.text import first_line
from kbo_pipeline.read import state_sql
from kbo_pipeline.read.content import hash_of, read_content
from kbo_pipeline.read.state_sql import HIDDEN_BEFORE, SHOWN, state_at
from kbo_pipeline.read.views import create_views


@contextmanager
def open_published(
    connection: duckdb.DuckDBPyConnection, database: Place
) -> Iterator[PublishedState]:
    """Attaches what readers open, for reading, as the default database of an in-memory DuckDB.

    It does not change while it is attached: a publication puts another file into its place, or
    makes another snapshot of a lake.

    Yields:
        Its published extracts.

    Raises:
        NotReadyError: there is none.
        RegisterError: it is no register.
        StorageError: another program has it open for writing, or it does not answer.
    """
    name = _attach(connection, database)
    shown = name
    try:
        with _explained(database):
            shown = show_to_reader(connection, name, database)
            state = read_published_state(connection)
        yield state
    finally:
        hide(connection, shown)
        detach(connection, name)


def _attach(connection: duckdb.DuckDBPyConnection, database: Place) -> str:
    try:
        return database.attach_to_read(connection, "published")
    except duckdb.Error as error:
        if isinstance(error, duckdb.IOException) and "lock" in str(error):
            raise StorageError(
                f"{database}: another program has it open for writing; end that, then again"
            ) from None
        raise unreadable(database, error) from None


@contextmanager
def _explained(database: Place) -> Iterator[None]:
    """Turns DuckDB's errors on a place that is no register into errors that name it."""
    try:
        yield
    except (duckdb.CatalogException, duckdb.BinderException):
        raise database.no_register() from None
    except duckdb.IOException as error:
        raise database.unreachable(error) or unreadable(database, error) from None


def unreadable(database: Place, error: Exception) -> RegisterError:
    """The error where a published register cannot be read."""
    reason = f"{database}: {first_line(error)}"
    if is_damage(error):
        return DamagedError(f"{reason}; kbo rebuild repairs it; if it is no register, move it away")
    return RegisterError(f"{reason}; move it away")


def content_hash(connection: duckdb.DuckDBPyConnection) -> str:
    """A hash of all row versions of the register that is the default database, in any order.

    Compare it within one version of DuckDB only.
    """
    rows = connection.execute(f"{state_sql.CONTENT_OF_TABLES} ORDER BY table_name").fetchall()
    return sha256(repr(rows).encode()).hexdigest()


def _first_published_at(database: Place) -> datetime | None:
    query = "SELECT min(completed_at) FROM main.import_jobs WHERE status = 'completed'"
    with duckdb.connect(":memory:") as connection:
        try:
            with open_published(connection, database):
                ((first,),) = connection.execute(query).fetchall()
        except NotReadyError:
            return None
    return cast("datetime | None", first)


WARN_DAYS = 10
"""After so many days without a comparison, nothing is sure any more."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the last comparison of the register at a number with KBO's Full has found.

    Attributes:
        published: the extract of that number.
        verified_at: when.
        rows_compared: rows of the Full.
        rows_differing: rows that only one of both has.
    """

    published: str
    verified_at: datetime
    rows_compared: int
    rows_differing: int

    @property
    def is_equal(self) -> bool:
        """Whether there was no difference."""
        return self.rows_differing == 0

    def to_json(self) -> dict[str, Any]:
        """What programs get of it; the file has more."""
        moment = self.verified_at.isoformat(timespec="seconds")
        return asdict(self) | {"verified_at": moment, "is_equal": self.is_equal}

    def __str__(self) -> str:
        what = f"equal to KBO's Full, {self.rows_compared:,} rows"
        if not self.is_equal:
            what = f"{self.rows_differing:,} rows differ from KBO's Full"
        return f"{self.published}: {what}, compared on {self.verified_at:%Y-%m-%d}"


def read_proofs(settings: Settings) -> dict[str, Proof]:
    """The proofs of all numbers, by the extract that was published, the one made last at the end.

    Raises:
        StorageError: a file of proofs cannot be read.
    """
    proofs = []
    for file in settings.proofs_dir.glob("*.json"):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            proof = Proof(
                published=content["published"],
                verified_at=datetime.fromisoformat(content["verified_at"]),
                rows_compared=content["rows_compared"],
                rows_differing=content["rows_differing"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{file}: no proof can be read from it ({type(error).__name__}); delete it, then"
                " kbo verify"
            ) from None
        proofs.append(proof)
    return {proof.published: proof for proof in sorted(proofs, key=lambda p: p.verified_at)}


def last_proof(settings: Settings) -> Proof | None:
    """The proof that was made last, None when there is none; otherwise as `read_proofs`."""
    return next(reversed(read_proofs(settings).values()), None)


def compared_at(settings: Settings, proof: Proof | None) -> datetime | None:
    """From when the days count until the register is to be compared with a Full again.

    That is the last proof, or else the first publication; None where nothing is published.

    Raises:
        RegisterError: the published file is no register.
        StorageError: another program has it open for writing, or it does not answer.
    """
    return proof.verified_at if proof else _first_published_at(settings.database)


def hash_of_state(connection: duckdb.DuckDBPyConnection, number: int) -> str:
    """A hash of all rows of all tables as they are at an extract, in any order.

    The register is the default database. A Full of that number has the same hash.
    """
    contents = {
        table.name: read_content(connection, table, state_at(table), {"number": number})
        for table in ALL_TABLES
    }
    return hash_of(contents)


_SHOWN = "shown"
"""The database that shows an older register as a current one."""


def show_to_reader(connection: duckdb.DuckDBPyConnection, name: str, place: Place) -> str:
    """Makes an attached register the default database, as one of the current layout.

    An older one is shown by views in memory, in which what it lacks has no values, or no rows; they
    leave out whom its own views leave out.

    Args:
        connection: an in-memory DuckDB.
        name: what the register is attached as.
        place: where it is.

    Returns:
        The name of the default database; `hide` takes it away.

    Raises:
        RegisterError: the register is of a newer version than this program.
    """
    at_work = place.schema_at_work
    version = version_of(connection, layout_of(connection, name, at_work), f"{name}.{at_work}")
    check_version(version, place)
    layout = layout_of(connection, name, "main")
    today = _todays_layout()
    is_whole = all(columns.keys() <= layout.get(table, {}).keys() for table, columns in today)
    if (is_whole and HIDDEN_BEFORE not in layout) or not has_ledger(layout):
        connection.execute(f"USE {name}")
        return name
    connection.execute(f"ATTACH ':memory:' AS {_SHOWN}")
    try:
        connection.execute(f"USE {_SHOWN}")
        for table, columns in today:
            there = layout.get(table, {}).keys()
            connection.execute(show_older(table, f"{name}.main", columns, there))
        leaves_out = bool({SHOWN, HIDDEN_BEFORE} & layout.keys())
        for statement in create_views("legal-persons" if leaves_out else "full"):
            connection.execute(statement)
    except duckdb.Error:
        hide(connection, _SHOWN)
        raise
    return _SHOWN


def hide(connection: duckdb.DuckDBPyConnection, shown: str) -> None:
    """Removes what `show_to_reader` has made; the register stays attached."""
    connection.execute("USE memory")
    if shown == _SHOWN:
        connection.execute(f"DETACH {_SHOWN}")


@functools.cache
def _todays_layout() -> tuple[tuple[str, Mapping[str, str]], ...]:
    """The columns of the tables of a register of the current layout."""
    with duckdb.connect(":memory:") as connection:
        create(Database(connection), has_keys=False)
        layout = layout_of(connection, "memory", "main")
    return tuple((table, layout[table]) for table in layout if table != VERSION_TABLE)


def published_state_of(
    database: Place, connection: duckdb.DuckDBPyConnection | None = None
) -> PublishedState:
    """The published extracts, read on a connection of its own if none is given.

    Empty if nothing is published, or if another program has the file open for writing: that must
    not stop an import.

    Raises:
        RegisterError: the file is no register.
        StorageError: a shared register does not answer.
    """
    if connection is None:
        with duckdb.connect(":memory:") as own:
            return published_state_of(database, own)
    try:
        with open_published(connection, database) as state:
            return state
    except NotReadyError:
        return PublishedState()
    except StorageError:
        if database.is_shared:
            raise
        return PublishedState()
