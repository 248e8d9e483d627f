"""The changes of all extracts as one feed: events in their order, from any cursor on.

An event is one change of one row, or of the columns that its kind is about. Events and cursors are
functions of the register alone: one that is rebuilt from the same ZIPs gives the same ones. A
cursor says how far a reader has come, and which states it has come through. So one that has read an
extract which is rolled back since is told to which state that leads back.

The rows of the entities that changed are collected once, with their history, as a small register in
memory. So a month takes hardly longer than a day.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Literal, Self, TypeGuard
from uuid import uuid4

import duckdb

from kbo_pipeline.core.errors import ExtractError, NotFoundError
from kbo_pipeline.core.extracts import ExtractKey, ExtractType
from kbo_pipeline.core.sql import all_of, indented, listed, union_all, with_queries
from kbo_pipeline.core.tables import (
    ACTIVITY,
    ADDRESS,
    CONTACT,
    DENOMINATION,
    ENTERPRISE,
    NUMBERED,
    PARTS,
    TABLES,
    UNITS,
    Privacy,
    Table,
)
from kbo_pipeline.read.changes import CORRECTED, KINDS, columns_of, described, queries
from kbo_pipeline.read.history import Meanings
from kbo_pipeline.read.state_sql import HIDES, SHOWN
from kbo_pipeline.read.types import ROLLED_BACK, Event, Language, PublishedExtract
from kbo_pipeline.read.views import macro_queries

_FETCHED = 10_000  # events
_COLLECTED = 500_000
"""Changed rows of the extracts whose entities are collected at once; more are read in place."""

_END = "~"
"""The position behind all events of an extract: it sorts behind all others."""

_STATE_LENGTH = 4  # bytes
_STEPS_BACK = (0, *(2**power for power in range(10)))
"""How many extracts before its own the states are that a cursor names."""

_CURSOR = re.compile(
    r"(?P<number>\d{10})(?P<type>[fu])\.(?P<position>\d{19}|~)\.(?P<states>[\w-]+)"
)

_TABLE_NAMES = [table.name for table in TABLES]
_KIND_NAMES = [name for name in dict.fromkeys(k.name for k in KINDS) if name != CORRECTED]
_KIND_NAMES.append(CORRECTED)  # last: cursors of before there was a repair stay valid

_BESIDE: Mapping[Table, tuple[str, ...]] = {
    DENOMINATION: ("type_of_denomination", "language"),
    ADDRESS: ("type_of_address",),
    CONTACT: ("entity_contact", "contact_type"),
    ACTIVITY: ("activity_group", "nace_version", "classification"),
}
"""A row that comes replaces one that goes and agrees with it in these columns."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which events are asked for; what is None asks for all.

    Attributes:
        kinds: of these kinds.
        tables: in these tables.
        number: of this dotted number: an entity, or an enterprise with its units and branches.
        nace: the entity, or its enterprise, has an activity whose NACE code begins so, before the
            change or after it.
        zipcode: likewise an address with this code.
    """

    kinds: Sequence[str] | None = None
    tables: Sequence[str] | None = None
    number: str | None = None
    nace: str | None = None
    zipcode: str | None = None

    def values(self) -> dict[str, Any]:
        """What is asked for, by name."""
        values = {
            "kinds": self.kinds,
            "tables": self.tables,
            "entity": self.number,
            "nace": self.nace,
            "zipcode": self.zipcode,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _State:
    """A published extract, and what identifies the state of the register at it."""

    extract: PublishedExtract
    identity: bytes

    @property
    def key(self) -> ExtractKey:
        return ExtractKey.parse(self.extract.key)


@dataclass(frozen=True, slots=True)
class _Cursor:
    """How far a reader has come: all events up to a position in an extract.

    Attributes:
        position: of the last event that was read; `_END` behind all of the extract.
        states: the identities of the state at the extract, and of some before it.
    """

    key: ExtractKey
    position: str
    states: tuple[bytes, ...]

    def __str__(self) -> str:
        states = urlsafe_b64encode(b"".join(self.states)).decode().rstrip("=")
        return f"{self.key.number:010d}{self.key.type[0]}.{self.position}.{states}"

    @classmethod
    def parse(cls, match: re.Match[str]) -> Self:
        try:
            states = urlsafe_b64decode(match["states"] + "=" * (-len(match["states"]) % 4))
        except Base64Error:
            states = b""
        if not states or len(states) % _STATE_LENGTH:
            raise ExtractError(f"{match[0]}: no cursor of this feed; give one as it was printed")
        kind: ExtractType = "full" if match["type"] == "f" else "update"
        pieces = range(0, len(states), _STATE_LENGTH)
        return cls(
            ExtractKey(int(match["number"]), kind),
            match["position"],
            tuple(states[start : start + _STATE_LENGTH] for start in pieces),
        )


def is_cursor(text: object) -> TypeGuard[str]:
    """Tells a cursor from the name of an extract."""
    return isinstance(text, str) and _CURSOR.fullmatch(text) is not None


def known(what: Literal["kind", "table"], names: Sequence[str] | None) -> Sequence[str] | None:
    """Names of kinds or tables, all of which there are.

    Raises:
        NotFoundError: one is none; names those that there are.
    """
    there = _KIND_NAMES if what == "kind" else _TABLE_NAMES
    for name in names or ():
        if name not in there:
            raise NotFoundError(f"{name!r}: no {what} of changes; there are {', '.join(there)}")
    return None if names is None else list(names)


def events_since(
    connection: duckdb.DuckDBPyConnection,
    extracts: Sequence[PublishedExtract],
    since: str | PublishedExtract,
    filters: Filters,
) -> Iterator[Event]:
    """All events behind a cursor, or of the extracts after one, in their order.

    Args:
        connection: has a published register as its default database; nobody else uses it.
        extracts: the published extracts, the newest first.
        since: a cursor, or an extract.
        filters: which events are asked for.

    Raises:
        ExtractError: it is no cursor.
        NotFoundError: the register was never in a state that the cursor has come through.
    """
    states = _states(connection, extracts)
    if isinstance(since, PublishedExtract):
        place, position = _place_of(states, since), _END
    else:
        match = _CURSOR.fullmatch(since)
        if match is None:
            raise ExtractError(f"{since}: no cursor of this feed; give one as it was printed")
        cursor = _Cursor.parse(match)
        place, position = _find(states, cursor)
        if (states[place].key, position) != (cursor.key, cursor.position):
            yield _rolled_back(states, place, cursor)
    todo = states[place:] if position != _END else states[place + 1 :]
    privacy: Privacy = "legal-persons" if connection.execute(HIDES).fetchone() else "full"
    for some, is_small in _groups(connection, todo):
        with _collected(connection, some, privacy) if is_small else nullcontext():
            for state in some:
                head = _cursor_at(states, states.index(state), "")
                after = position if state is states[place] else ""
                yield from _events_of(connection, state, head, after, filters)


Subject = tuple[str, str, str]
"""Table, kind and entity of a change."""


def in_words(
    connection: duckdb.DuckDBPyConnection,
    extracts: Sequence[PublishedExtract],
    extract: PublishedExtract,
    subjects: Collection[Subject],
    language: Language,
) -> dict[Subject, tuple[str, str]]:
    """What went and what came in some changes of an extract, each code with its meaning.

    Nothing for the first extract, whose rows all came.

    Args:
        connection: has a published register as its default database; nobody else uses it.
        extracts: the published extracts, the newest first.
        extract: the extract.
        subjects: which changes.
        language: of meanings, streets and places, where KBO has them in it.
    """
    place = extracts.index(extract) + 1
    if place == len(extracts):
        return {}
    codes = connection.execute(_CODES, {"number": extract.number}).fetchall()
    meanings = Meanings(codes, language)
    texts: dict[Subject, tuple[list[str], list[str]]] = {key: ([], []) for key in subjects}
    for event in events_since(connection, extracts, extracts[place], Filters()):
        if event.extract_number > extract.number:
            break
        sides = texts.get((event.table or "", event.kind, event.entity_number or ""))
        if sides is not None:
            table = next(table for table in TABLES if table.name == event.table)
            for side, row in zip(sides, (event.before, event.after), strict=True):
                if row is not None:
                    side.append(meanings.in_words(table, row, _named_in(row, language)))
    return {key: ("; ".join(before), "; ".join(after)) for key, (before, after) in texts.items()}


_CODES = "SELECT category, code, language, description FROM code_at($number)"


def _named_in(row: Mapping[str, str | None], language: Language) -> list[str]:
    """The columns of a row, but for those that say in another language what is there."""
    mine, other = ("_fr", "_nl") if language == "fr" else ("_nl", "_fr")
    return [
        name
        for name in row
        if not (name.endswith(other) and row.get(name.removesuffix(other) + mine))
    ]


def cursor_behind(
    connection: duckdb.DuckDBPyConnection,
    extracts: Sequence[PublishedExtract],
    extract: PublishedExtract,
) -> str:
    """The cursor behind all events of an extract; takes what `events_since` takes."""
    states = _states(connection, extracts)
    return str(_cursor_at(states, _place_of(states, extract), _END))


def _place_of(states: Sequence[_State], extract: PublishedExtract) -> int:
    """The place of an extract among the states."""
    return next(i for i, state in enumerate(states) if state.extract.key == extract.key)


def _states(
    connection: duckdb.DuckDBPyConnection, extracts: Sequence[PublishedExtract]
) -> list[_State]:
    """The states of the register, the oldest first.

    A Full says what all rows are, so the state at it does not depend on those before. An extract
    that a repair has corrected has another state than the same ZIP had before.
    """
    corrected = dict(connection.execute(_CORRECTED_AT).fetchall())
    hashes = dict(
        connection.execute(
            "SELECT id, sha256 FROM import_jobs WHERE status = 'completed'"
        ).fetchall()
    )
    states: list[_State] = []
    identity = b""
    for extract in reversed(extracts):
        before = b"" if extract.type == "full" else identity
        text = before + f"{extract.key} {hashes[extract.key]}".encode()
        if extract.number in corrected:
            text += f" corrected {corrected[extract.number]}".encode()
        identity = sha256(text).digest()[:_STATE_LENGTH]
        states.append(_State(extract, identity))
    return states


_CORRECTED_AT = """
SELECT extract_number, max(epoch_us(completed_at))
FROM import_jobs
WHERE status = 'completed' AND extract_number IN (SELECT extract_number FROM correction)
GROUP BY extract_number
"""
"""When the extracts were published that corrected something, by their numbers."""


def _cursor_at(states: Sequence[_State], place: int, position: str) -> _Cursor:
    back = (states[place - steps].identity for steps in _STEPS_BACK if steps <= place)
    return _Cursor(states[place].key, position, tuple(back))


def _find(states: Sequence[_State], cursor: _Cursor) -> tuple[int, str]:
    """The place of the state, and the position behind it, from which a reader has to go on."""
    known = cursor.states
    for place, state in enumerate(states):
        if state.key == cursor.key and state.identity == known[0]:
            before = states[place - 1].identity if place else None
            if cursor.position == _END or before == (known[1] if len(known) > 1 else None):
                return place, cursor.position
            known = known[1:]  # it was reached from another state, by other events
    for place in reversed(range(len(states))):
        if states[place].identity in known:
            return place, _END
    first, last = states[0].extract.key, states[-1].extract.key
    raise NotFoundError(
        f"{cursor}: the register was never in the state at {cursor.key} that this cursor knows, nor"
        f" in one before; read the register anew, then --since {last} (published: {first} to"
        f" {last})"
    )


def _rolled_back(states: Sequence[_State], place: int, cursor: _Cursor) -> Event:
    """Says that all events whose cursors sort behind that of this one are undone."""
    extract = states[place].extract
    return Event(
        cursor=str(_cursor_at(states, place, _END)),
        extract=str(cursor.key),
        extract_number=cursor.key.number,
        snapshot_date=extract.snapshot_date,
        table=None,
        kind=ROLLED_BACK,
        entity_number=None,
        enterprise_number=None,
        name=None,
        before={"extract": str(cursor.key)},
        after={"extract": extract.key},
    )


def _groups(
    connection: duckdb.DuckDBPyConnection, states: Sequence[_State]
) -> Iterator[tuple[list[_State], bool]]:
    """States after each other, and whether their rows are few enough to be collected."""
    changed = dict(
        connection.execute(
            """
            SELECT job_id, sum(rows_closed + rows_opened)::BIGINT
            FROM import_job_batches
            GROUP BY job_id
            """
        ).fetchall()
    )
    group: list[_State] = []
    rows = 0
    for state in states:
        of_state = changed.get(state.extract.key, 0)
        if group and rows + of_state > _COLLECTED:
            yield group, rows <= _COLLECTED
            group, rows = [], 0
        group.append(state)
        rows += of_state
    if group:
        yield group, rows <= _COLLECTED


@contextmanager
def _collected(
    connection: duckdb.DuckDBPyConnection, states: Sequence[_State], privacy: Privacy
) -> Iterator[None]:
    """Makes a register of the entities that some extracts changed the default database.

    It has all versions of their rows, and of those of the enterprises that they belong to.
    """
    ((source, schema),) = connection.execute(
        "SELECT current_database(), current_schema()"
    ).fetchall()
    name = f"feed_{uuid4().hex}"
    numbers = {"first": states[0].extract.number, "last": states[-1].extract.number}
    connection.execute(f"ATTACH ':memory:' AS {name}")
    try:
        connection.execute(_touched(name), numbers)
        for table in TABLES:
            connection.execute(
                f"""CREATE TABLE {name}.{table.name} AS
FROM main.{table.name}
WHERE {table.key} IN (SELECT number FROM {name}.touched)"""
            )
        connection.execute(f"CREATE TABLE {name}.correction AS\nFROM main.correction")
        if privacy != "full":
            connection.execute(
                f"""CREATE TABLE {name}.{SHOWN} AS
FROM main.{SHOWN}
WHERE number IN (SELECT number FROM {name}.touched)"""
            )
        connection.execute(f"USE {name}")
        for macro, query in macro_queries(privacy).items():
            if macro in _MACROS:
                connection.execute(f"CREATE MACRO {macro}(extract_number) AS TABLE\n{query}")
        yield
    finally:
        connection.execute(f"USE {source}.{schema}")
        connection.execute(f"DETACH {name}")


_MACROS = {f"{table.name}_{macro}" for table in TABLES for macro in ("at", "changes")}


def _touched(name: str) -> str:
    """Makes `touched`: the numbers of what changed, and of the enterprises that it belongs to.

    Written so that DuckDB's zone maps can skip what is not asked for.
    """
    changed = "\nUNION\n".join(
        f"SELECT {table.key} AS number\nFROM main.{table.name}\n"
        f"WHERE {column} BETWEEN $first AND $last"
        for table in TABLES
        for column in ("_extract_number", "_deleted_at_extract")
    )
    owners = "\nUNION\n".join(
        f"SELECT {ENTERPRISE.key}\nFROM main.{table.name}\n"
        f"WHERE {table.key} IN (SELECT number FROM changed)"
        for table in UNITS
    )
    query = with_queries(
        {"changed": changed}, f"SELECT number FROM changed\nUNION\n{owners}", materialized=True
    )
    return f"CREATE TABLE {name}.touched AS\n{query}"


def _events_of(
    connection: duckdb.DuckDBPyConnection,
    state: _State,
    cursor: _Cursor,
    after: str,
    filters: Filters,
) -> Iterator[Event]:
    """The events of one extract behind a position, as far as they are asked for."""
    extract = state.extract
    values = filters.values()
    result = connection.execute(
        _statement(tuple(values)), {"number": extract.number, "after": after, **values}
    )
    tail = str(cursor).split(".")
    for rows in iter(lambda: result.fetchmany(_FETCHED), []):
        for position, table, kind, entity, enterprise, name, before, after in rows:
            columns = _COLUMNS[table, kind]
            yield Event(
                f"{tail[0]}.{position}.{tail[2]}",
                extract.key,
                extract.number,
                extract.snapshot_date,
                table,
                kind,
                entity,
                enterprise,
                name,
                None if before is None else dict(zip(columns, before, strict=True)),
                None if after is None else dict(zip(columns, after, strict=True)),
            )


_COLUMNS: Mapping[tuple[str, str], tuple[str, ...]] = {
    **{(t.name, kind): t.column_names[1:] for t in PARTS for kind in _KIND_NAMES},
    **{(t.name, kind): columns for t in NUMBERED for kind, columns in columns_of(t).items()},
}
"""The columns of an event, by table and kind."""


def _values(alias: str, columns: tuple[str, ...]) -> str:
    """Some columns of a row as a list of texts; NULL where there is no row.

    A list without the names of its columns becomes Python's eight times faster than a map does.
    """
    values = listed((f"{alias}.{name}::VARCHAR" for name in columns), by=8)
    return f"CASE WHEN {alias}._change IS NOT NULL THEN [{values}] END"


def _sorted(rows: str) -> str:
    """A list of rows in one order; many short lists are sorted faster so than while collected."""
    return f"list_sort({rows}, 'ASC', 'NULLS LAST')"


def _row_events(table: Table) -> str:
    """The rows that came and went in a table in which an entity has any number of rows."""
    others = table.column_names[1:]
    rows = f"list({_values('c', others)})"
    removed, added = (
        _sorted(f"{rows} FILTER (_change = '{change}')") for change in ("removed", "added")
    )
    sides = f"""SELECT {table.key} AS entity_number,
    coalesce({removed}, []) AS removed,
    coalesce({added}, []) AS added
FROM {table.name}_changes($number) c
GROUP BY {table.key}, {listed(_BESIDE[table], by=8)}"""
    return f"""SELECT '{table.name}' AS table_name, entity_number,
    removed[place] AS before, added[place] AS after
FROM (
    SELECT *, unnest(range(1, greatest(len(removed), len(added)) + 1)) AS place
    FROM (
        {indented(sides, 8)}
    )
)"""


def _place_in(names: Sequence[str], column: str, digits: int) -> str:
    """A text by which rows sort as names do in their order."""
    cases = " ".join(f"WHEN '{name}' THEN '{i:0{digits}d}'" for i, name in enumerate(names))
    return f"CASE {column} {cases} END"


_EVENTS = f"""SELECT * FROM numbered
UNION ALL
SELECT e.table_name, e.entity_number,
    CASE WHEN p.kind = '{CORRECTED}' THEN p.kind ELSE coalesce(g.kind, p.kind) END AS kind,
    e.before, e.after
FROM (
    {indented(union_all(map(_row_events, PARTS)))}
) e
LEFT JOIN (SELECT entity_number, min(kind) AS kind FROM come_or_gone GROUP BY entity_number) g
    ON g.entity_number = e.entity_number
LEFT JOIN parts p ON p.table_name = e.table_name AND p.entity_number = e.entity_number"""
"""All events of an extract; names and so on of a new entity are `new` with it, or corrected."""

_POSITIONED = f"""SELECT table_name, entity_number, kind, event.before, event.after,
    {_place_in(_TABLE_NAMES, "table_name", 1)}
        || replace(entity_number, '.', '')
        || {_place_in(_KIND_NAMES, "kind", 2)}
        || lpad(place::VARCHAR, 6, '0') AS position
FROM (
    SELECT table_name, entity_number, kind,
        unnest(same) AS event, generate_subscripts(same, 1) AS place
    FROM (
        SELECT table_name, entity_number, kind,
            {_sorted("list({'before': before, 'after': after})")} AS same
        FROM events
        GROUP BY ALL
    )
)"""

_CONDITIONS = {
    "kinds": "kind IN (SELECT unnest($kinds))",
    "tables": "table_name IN (SELECT unnest($tables))",
    "entity": f"$entity IN (entity_number, {ENTERPRISE.key})",
}
"""What filters ask of an event."""

_ROWS_ASKED = {
    "zipcode": (ADDRESS, "zipcode = $zipcode"),
    "nace": (ACTIVITY, "starts_with(nace_code, $nace)"),
}
"""Filters for which the entity, or its enterprise, must have a row: the table, and which rows."""


@cache
def _statement(filters: tuple[str, ...]) -> str:
    """The events of an extract behind a position, in order; binds the filters that are named."""
    asked = {}
    conditions = ["position > $after"]
    for name in filters:
        if name in _CONDITIONS:
            conditions.append(_CONDITIONS[name])
            continue
        table, where = _ROWS_ASKED[name]
        asked[f"asked_{name}"] = "\nUNION\n".join(
            f"SELECT {table.key}\nFROM {table.name}_at({number})\nWHERE {where}"
            for number in ("$number - 1", "$number")
        )
        conditions.append(
            f"(entity_number IN (FROM asked_{name}) OR {ENTERPRISE.key} IN (FROM asked_{name}))"
        )
    positioned = {
        "events": _EVENTS,
        "positioned": _POSITIONED,
        "described": described("positioned", "c.position, c.table_name, c.kind"),
    }
    return with_queries(
        queries(_values) | positioned | asked,
        f"SELECT *\nFROM described\nWHERE {all_of(conditions)}\nORDER BY position",
        materialized=True,
    )
