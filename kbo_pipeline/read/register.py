"""The published register as analysts and developers read it: `read_register`.

Readers never wait for the writer: the file is replaced as a whole, and an open one stays as it is.

A connection of DuckDB holds one result at a time, for whichever thread fetches it. So each question
is asked on a connection of its own to the one open database.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import duckdb

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import KboError, NotFoundError, NotReadyError, RegisterError
from kbo_pipeline.core.places import DuckDBFile, Place
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.core.text import first_line
from kbo_pipeline.read import changes, feed, question, search_sql
from kbo_pipeline.read.lookup import Facts, look_up, read_facts
from kbo_pipeline.read.published import show_to_reader
from kbo_pipeline.read.state_sql import EXTRACTS, HIDES
from kbo_pipeline.read.types import (
    Change,
    Enterprise,
    Entry,
    Event,
    ExtractName,
    Language,
    Match,
    Matched,
    PublishedExtract,
    dotted,
    named,
    state_at,
)

if TYPE_CHECKING:
    from kbo_pipeline.read.index import SearchIndex


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
    return open_as_set(load_settings())


def open_as_set(settings: Settings) -> "PublishedRegister":
    """Opens the register of the settings, if it shows whom they allow; as `read_register`."""
    register = open_register(settings.database, settings.search_dir)
    if settings.privacy == "legal-persons" and not register.leaves_out_others():
        register.close()
        raise RegisterError(
            f"{settings.database}: its views show natural persons too, as they were made with"
            " another KBO_PRIVACY; kbo start or kbo rebuild recreates them"
        )
    return register


def open_register(place: Place, search_dir: Path | None = None) -> "PublishedRegister":
    """Opens the register at a place, whatever its views leave out; otherwise as `read_register`.

    Args:
        place: where it is.
        search_dir: where its search index is; None for beside a file.
    """
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
    return PublishedRegister(
        place, extracts, connection, name, _Index(search_dir or place.search_dir)
    )


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


@dataclass(frozen=True, slots=True)
class Publication:
    """What readers of a register are shown.

    Attributes:
        identity: differs as soon as anything that is shown does: after an extract, a rollback, a
            repair, a proof, or with another `KBO_PRIVACY`. The same wherever it is read.
        privacy: who is in it, as `KBO_PRIVACY` says it.
        proven_extract_number: the last number at which it was equal to KBO's Full; None for none.
        proven_at: when that was found.
    """

    identity: str
    privacy: str
    proven_extract_number: int | None
    proven_at: datetime | None


_PUBLISHED = """
SELECT id, sha256, epoch_us(completed_at)
FROM import_jobs
WHERE status = 'completed'
ORDER BY ALL
"""

_SHOWN_AND_PROVEN = """
SELECT privacy, proven_extract_number, epoch_us(proven_at)
FROM "current".source
"""


@dataclass
class _Index:
    """The search index of an open register, which is opened once somebody asks it.

    Attributes:
        directory: where it is; None where it cannot be.
        opened: itself, once it was right.
    """

    directory: Path | None
    opened: "SearchIndex | None" = None

    def open(self, connection: duckdb.DuckDBPyConnection) -> "SearchIndex":
        """Opens it; one that is not right is looked for again the next time.

        Raises:
            NotReadyError: it is missing, damaged, or of another extract than the register.
        """
        if self.opened is None:
            from kbo_pipeline.read.index import SearchIndex, read_mark  # only those who search

            if self.directory is None:
                raise NotReadyError("the search index of a register that is no file is elsewhere")
            self.opened = SearchIndex(self.directory, read_mark(connection))
        return self.opened


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
    _index: _Index = field(repr=False, compare=False)
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
        question.begin(connection)
        connection.execute(f"USE {self._name}")
        return connection

    @contextmanager
    def _connected(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for one question and its answer."""
        with self._connect() as connection:
            try:
                yield connection
            finally:
                question.end(connection)

    @contextmanager
    def _database(self) -> Iterator[Database]:
        """The same, whose statements take their values as keyword arguments."""
        with self._connected() as connection:
            yield Database(connection)

    @property
    def publication(self) -> Publication:
        """What it is that is published."""
        with self._database() as database:
            published = database.execute(_PUBLISHED).fetchall()
            ((privacy, proven, micros),) = database.execute(_SHOWN_AND_PROVEN).fetchall()
        text = repr((published, privacy, proven, micros))
        moment = None if micros is None else datetime.fromtimestamp(micros / 1e6, UTC)
        identity = f"{self.extracts[0].key}-{sha256(text.encode()).hexdigest()[:12]}"
        return Publication(identity, privacy, proven, moment)

    @cached_property
    def _facts(self) -> Facts:
        with self._database() as database:
            return read_facts(database)

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
            return look_up(
                database, self._facts, self.extracts, number, self._state_at(at), language
            )

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
        """Current enterprises by text, place and activity, the best matches first.

        With the search index, spelling is forgiven; without it, all words must be in the name as
        they are typed (docs/search.md). `why_not_forgiving` says whether it is used.

        Args:
            text: names, words or beginnings of them, of the enterprise or of one of its
                establishment units or branches; a legal form, a place, an address, a number.
            zipcode: of an address of the enterprise or of one of its units.
            nace: the first digits of a NACE code of an activity of any of them.
            nace_version: the version of that code; None for the newest that the register has.
            status: KBO's code, such as `AC`.
            limit: how many at most, 1 or more.

        Raises:
            NotFoundError: neither `text` nor `zipcode` nor `nace` says what to look for.
        """
        criteria = search_sql.Criteria(text, zipcode, nace, nace_version, status, limit)
        with self._database() as database:
            if criteria.text.strip():
                from kbo_pipeline.read import search

                try:
                    opened = self._index.open(database.connection)
                    return search.find(database, criteria, self.extracts[0], opened)
                except NotReadyError:
                    self._index.opened = None
            return search_sql.find(database, criteria, self.extracts[0])

    def why_not_forgiving(self) -> str | None:
        """Why `find` does without the search index, in one line; None where it uses it."""
        if self._index.opened is not None:
            return None
        with self._connected() as connection:
            try:
                self._index.open(connection)
            except NotReadyError as error:
                return str(error)
        return None

    def match(self, entries: Iterable[Entry]) -> Iterator[Matched]:
        """Who the entries of a list are: for each the candidates, whether the best is certain, why.

        Results come in the order of the entries, one by one.

        Raises:
            NotReadyError: there is no search index of the newest extract; kbo index makes it.
        """
        from kbo_pipeline.read.match import match

        with self._connected() as connection:
            opened = self._index.open(connection)
        return (match(opened, entry) for entry in entries)

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
        criteria = search_sql.Criteria("", zipcode, nace, nace_version, status, 1)
        with self._database() as database:
            search_sql.check_known(database, criteria, self.extracts[0])

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

    def changes_since(
        self,
        since: ExtractName,
        *,
        kinds: Sequence[str] | None = None,
        tables: Sequence[str] | None = None,
        number: str | int | None = None,
        nace: str | None = None,
        zipcode: str | None = None,
    ) -> Iterator[Event]:
        """The changes of all extracts after a cursor or an extract, in order (docs/changes.md).

        A cursor is valid for as long as the register exists. Behind a rollback, the first event is
        `rolled_back`: it says what is undone.

        Args:
            since: the cursor of the last event that was read, or an extract.
            kinds: of these alone.
            tables: in these alone.
            number: of this entity alone; of an enterprise, with its units and branches.
            nace: where the entity or its enterprise has an activity whose NACE code begins so.
            zipcode: likewise an address with this code.

        Raises:
            ExtractError: the text is neither a cursor nor the name of an extract.
            NotFoundError: the extract is not published; there is no such kind, table or number; or
                the cursor is of another register.
        """
        filters = feed.Filters(
            kinds=feed.known("kind", kinds),
            tables=feed.known("table", tables),
            number=None if number is None else dotted(number),
            nace=nace,
            zipcode=zipcode,
        )
        place = since if feed.is_cursor(since) else self.extract(since)
        return feed.events_since(self._connect(), self.extracts, place, filters)

    def in_words(
        self, extract: ExtractName, changes: Iterable[Change], language: Language = "nl"
    ) -> dict[Change, tuple[str, str]]:
        """What went and what came in some changes of an extract, each code with its meaning.

        Args:
            extract: the extract of the changes.
            changes: some of them; those that are `new` or `stopped` say all by their kind.
            language: of meanings, streets and places, where KBO has them in it.

        Raises:
            NotFoundError: the extract is not published.
        """
        subjects = {(c.table, c.kind, c.entity_number): c for c in changes}
        with self._connected() as connection:
            words = feed.in_words(
                connection, self.extracts, self.extract(extract), subjects.keys(), language
            )
        return {subjects[subject]: texts for subject, texts in words.items()}

    def cursor(self, extract: ExtractName | None = None) -> str:
        """The cursor behind all events of an extract, by default the newest: to follow from there.

        Raises:
            NotFoundError: the extract is not published.
        """
        with self._connected() as connection:
            return feed.cursor_behind(connection, self.extracts, self.extract(extract))

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
        with self._connected() as connection:
            return changes.count_changes(connection, self.extract(extract).number)
