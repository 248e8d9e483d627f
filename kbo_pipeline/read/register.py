"""The published register as analysts and developers read it: `read_register`.

Readers never wait for the writer: the file is replaced as a whole, and an open one stays as it is.

A connection of DuckDB holds one result at a time, for whichever thread fetches it. So each question
is asked on a connection of its own to the one open database.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import duckdb

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import KboError, NotFoundError, NotReadyError, RegisterError
from kbo_pipeline.core.places import DuckDBFile, Place
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.core.text import first_line
from kbo_pipeline.read import changes, search
from kbo_pipeline.read.lookup import look_up
from kbo_pipeline.read.published import show_to_reader
from kbo_pipeline.read.state_sql import EXTRACTS, HIDES
from kbo_pipeline.read.types import (
    Change,
    Enterprise,
    ExtractName,
    Language,
    Match,
    PublishedExtract,
    named,
    state_at,
)


def read_register(path: str | Path | None = None) -> "PublishedRegister":
    """Opens a published register for reading; `with` closes it.

    It shows the extracts that are published now, even after the file is replaced or a lake has
    newer ones: open it again to see those. It locks nothing and waits for nobody.

    Args:
        path: a DuckDB file; None for `KBO_DATABASE` of the settings, whatever that names.

    Raises:
        NotFoundError: there is no such register, or nothing is published in it.
        RegisterError: the file is no published register; or `KBO_PRIVACY` leaves out whom it shows.
        SettingsError: a setting is unknown or malformed.
        StorageError: a register that is no file does not answer.
    """
    if path is not None:
        return open_register(DuckDBFile(Path(path).absolute()))
    settings = load_settings()
    register = open_register(settings.database)
    if settings.privacy == "legal-persons" and not register.leaves_out_others():
        register.close()
        raise RegisterError(
            f"{settings.database}: its views show natural persons too, as they were made with"
            " another KBO_PRIVACY; kbo start or kbo rebuild recreates them"
        )
    return register


def open_register(place: Place) -> "PublishedRegister":
    """Opens the register at a place, whatever its views leave out; otherwise as `read_register`."""
    if not place.may_exist:
        raise NotFoundError(
            f"{place}: no published register there; kbo start or kbo import creates it"
        )
    # Attached to a database of its own: DuckDB gives all connections of a process that open one
    # path the file that the first of them found there, also after it was replaced.
    connection = duckdb.connect(":memory:")
    try:
        name, rows = _attach(connection, place)
    except KboError:
        connection.close()
        raise
    if not rows:
        connection.close()
        raise NotFoundError(f"{place}: no extract is published in it; kbo start or kbo import does")
    extracts = tuple(PublishedExtract(*row) for row in rows)
    return PublishedRegister(place, extracts, connection, name)


def _attach(
    connection: duckdb.DuckDBPyConnection, place: Place
) -> tuple[str, list[tuple[Any, ...]]]:
    """Attaches a published register as the default database; its name there, and its extracts."""
    try:
        name = place.attach_to_read(connection, "register")
        shown = show_to_reader(connection, name, place)
        return shown, connection.execute(EXTRACTS).fetchall()
    except NotReadyError as error:
        raise NotFoundError(str(error)) from None
    except duckdb.Error as error:
        if isinstance(error, duckdb.CatalogException) and place.is_shared:
            raise NotFoundError(str(place.no_register())) from None
        raise unreadable(place, error) from None


def unreadable(place: Place, error: duckdb.Error) -> KboError:
    """The error for a published register whose content cannot be read."""
    return place.unreachable(error) or RegisterError(
        f"{place}: cannot be read as a published register ({first_line(error)}); kbo doctor says"
        " more"
    )


@dataclass(frozen=True)
class PublishedRegister:
    """A published register that is open for reading, by any number of threads at once.

    An extract is named by the number, the key or the date of a published one: 141, `141`,
    `0141-update`, `2025-10-05` or a `date`; None is the newest. The state at a date is that of the
    last extract up to it. Any other name is an error, never an empty answer.

    Attributes:
        place: where it is.
        extracts: the published extracts, the newest first.
    """

    place: Place
    extracts: tuple[PublishedExtract, ...]
    _opened: duckdb.DuckDBPyConnection = field(repr=False, compare=False)
    _name: str = field(repr=False, compare=False)
    _of_thread: threading.local = field(
        default_factory=threading.local, init=False, repr=False, compare=False
    )

    def __enter__(self) -> "PublishedRegister":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; connections to it and relations cannot be read any more."""
        self._opened.close()

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """DuckDB, with the register as the default database: for SQL of your own.

        It has the views and macros of docs/data.md. Each thread has one of its own, the same each
        time; other methods of the register do not disturb its results.
        """
        if not hasattr(self._of_thread, "connection"):
            self._of_thread.connection = self._connect()
        connection: duckdb.DuckDBPyConnection = self._of_thread.connection
        return connection

    def _connect(self) -> duckdb.DuckDBPyConnection:
        """Another connection to what is open; `USE` does not come along by itself."""
        connection = self._opened.cursor()
        connection.execute(f"USE {self._name}")
        return connection

    @contextmanager
    def _database(self) -> Iterator[Database]:
        """A connection for one question and its answer."""
        with self._connect() as connection:
            yield Database(connection)

    def leaves_out_others(self) -> bool:
        """Tells whether it shows known legal persons alone."""
        with self._database() as database:
            return database.row(HIDES) is not None

    @property
    def source(self) -> str:
        """The line to show with the data: where it is from, and of which day."""
        return self.extracts[0].source

    def extract(self, extract: ExtractName | None = None) -> PublishedExtract:
        """The published extract that a number, key or date names; the newest for None.

        Raises:
            NotFoundError: it is not published, or two are of that date.
            ExtractError: the text is neither a number nor a key nor a date.
        """
        return self.extracts[0] if extract is None else named(self.extracts, extract)

    def _state_at(self, at: ExtractName | None) -> PublishedExtract:
        return self.extracts[0] if at is None else state_at(self.extracts, at)

    def enterprise(
        self, number: str | int, at: ExtractName | None = None, language: Language = "nl"
    ) -> Enterprise:
        """The enterprise of a number, with all that belongs to it, and its history.

        Args:
            number: of an enterprise, or of one of its establishment units or branches; with or
                without dots, blanks and `BE`, as on an invoice (`TVA BE 0200.065.765`); a zero in
                front may be missing.
            at: the extract whose state is asked for; history goes up to it.
            language: of codes, streets and places: `nl`, `fr` or `de`; another one where KBO does
                not have them in it.

        Raises:
            NotFoundError: there is none, or it may not be shown, or there is no such language; says
                what to do.
        """
        if language not in get_args(Language):
            known = ", ".join(get_args(Language))
            raise NotFoundError(f"{language!r}: no language of KBO's; there are {known}")
        with self._database() as database:
            return look_up(database, self.extracts, number, self._state_at(at), language)

    def find(
        self,
        text: str = "",
        *,
        zipcode: str | None = None,
        nace: str | None = None,
        nace_version: str | None = None,
        status: str | None = None,
        limit: int = 20,
    ) -> list[Match]:
        """Current enterprises by name, place and activity, the best matches first.

        Args:
            text: a name or words of one, of the enterprise or of one of its establishment units or
                branches; accents and case do not matter. Equal names come first, then those that
                begin with it, that have a word which does, that hold it, that hold all its words.
            zipcode: of an address of the enterprise or of one of its units.
            nace: the first digits of a NACE code of an activity of any of them.
            nace_version: the version of that code; None for the newest that the register has.
            status: KBO's code, such as `AC`.
            limit: how many at most, 1 or more.

        Raises:
            NotFoundError: neither `text` nor `zipcode` nor `nace` says what to look for.
        """
        criteria = search.Criteria(text, zipcode, nace, nace_version, status, limit)
        with self._database() as database:
            return search.find(database, criteria, self.extracts[0])

    def check_known(
        self,
        *,
        zipcode: str | None = None,
        nace: str | None = None,
        nace_version: str | None = None,
        status: str | None = None,
    ) -> None:
        """Tells a search that finds nothing from one that cannot; takes what `find` takes.

        Raises:
            NotFoundError: the register has no such zipcode, NACE code or status; says which.
        """
        criteria = search.Criteria("", zipcode, nace, nace_version, status, 1)
        with self._database() as database:
            search.check_known(database, criteria, self.extracts[0])

    def state(self, table: str, at: ExtractName | None = None) -> duckdb.DuckDBPyRelation:
        """The rows of a table at an extract, as a relation of DuckDB.

        It is evaluated only when rows are fetched (`.df()`, `.arrow()`, `.fetchall()`), so that
        `filter`, `aggregate` and `order` read only what they need. It and the relations
        made from it have a connection of their own: use them in one thread at a time, and join
        tables with `sql`, as relations of several calls cannot be joined.

        Raises:
            NotFoundError: there is no such table, or the extract is not published.
        """
        names = [known.name for known in ALL_TABLES]
        if table not in names:
            raise NotFoundError(
                f"{table!r}: no table of the register; there are {', '.join(names)}"
            )
        return self._connect().table_function(f"{table}_at", [self._state_at(at).number])

    def sql(self, query: str, **values: Any) -> duckdb.DuckDBPyRelation:
        """What a query gives, as a relation of DuckDB with a connection of its own.

        Args:
            query: one SELECT, with the views and macros of docs/data.md.
            values: of each `$name` in it.
        """
        return self._connect().sql(query, params=values or None)

    def changes(self, extract: ExtractName) -> Iterator[Change]:
        """What an extract changed, entity by entity, each change by its kind (docs/changes.md).

        Raises:
            NotFoundError: the extract is not published.
        """
        number = self.extract(extract).number
        return changes.iterate_changes(self._connect(), number)

    def changed_entities(self, extract: ExtractName) -> duckdb.DuckDBPyRelation:
        """The same as a relation of DuckDB, for `.df()`, `.arrow()` and aggregates.

        Raises:
            NotFoundError: the extract is not published.
        """
        number = self.extract(extract).number
        return changes.changed_entities(self._connect(), number)

    def count_changes(self, extract: ExtractName) -> dict[tuple[str, str], int]:
        """How many entities an extract changed, by table and kind; all kinds, in their order.

        Raises:
            NotFoundError: the extract is not published.
        """
        with self._connect() as connection:
            return changes.count_changes(connection, self.extract(extract).number)
