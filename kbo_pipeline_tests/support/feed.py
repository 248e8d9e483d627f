"""A reader of the feed in plain Python: keeps the rows of all tables by its events alone."""

from collections.abc import Iterable

from kbo_pipeline.core.tables import NUMBERED, TABLES
from kbo_pipeline.read.changes import CORRECTED
from kbo_pipeline.read.types import ROLLED_BACK, Event
from kbo_pipeline_tests.support.zips import Row

Rows = dict[str, set[tuple[str | None, ...]]]
"""The rows of each table, as texts."""

_NUMBERED = {table.name: table.column_names for table in NUMBERED}


def rows_as_texts(rows: dict[str, Iterable[Row]]) -> Rows:
    """Rows by table, as events have them."""
    return {
        table: {tuple(None if value is None else str(value) for value in row) for row in some}
        for table, some in rows.items()
    }


class Reader:
    """Follows the feed; takes back what is rolled back.

    Of a correction it does what is left to do, since its rows may be right already; any other event
    must fit its rows.
    """

    def __init__(self, rows: Rows, cursor: str) -> None:
        self.rows = {table.name: set(rows[table.name]) for table in TABLES}
        self.begun = self.cursor = cursor
        self.kept: list[Event] = []
        self._done: list[tuple[str, _Some, _Some]] = []

    def take(self, event: Event) -> None:
        """Does what an event says."""
        if event.kind == ROLLED_BACK:
            assert event.cursor >= self.begun  # what was before this reader, it does not know
            while self.kept and self.kept[-1].cursor > event.cursor:
                self.kept.pop()
                table, gone, came = self._done.pop()
                self.rows[table] -= came
                self.rows[table] |= gone
        else:
            assert event.table is not None
            rows = self.rows[event.table]
            gone, came = self._difference(event, event.table, rows)
            if event.kind == CORRECTED:
                gone, came = (gone & rows) - came, came - rows
            assert gone <= rows
            rows -= gone
            assert not came & rows
            rows |= came
            self.kept.append(event)
            self._done.append((event.table, gone, came))
        self.cursor = event.cursor

    def _difference(self, event: Event, table: str, rows: "_Some") -> tuple["_Some", "_Some"]:
        """The rows that go and those that come."""
        number, old, new = event.entity_number, event.before, event.after
        gone = {(number, *old.values())} if old is not None else set()
        came = {(number, *new.values())} if new is not None else set()
        if table not in _NUMBERED:
            return gone, came
        mine = {row for row in rows if row[0] == number}
        if event.kind == CORRECTED:
            return mine, came
        if old is None or new is None:
            return gone, came
        (row,) = mine
        named = dict(zip(_NUMBERED[table], row, strict=True))
        assert {name: named[name] for name in old} == old
        return mine, {tuple((named | {**new}).values())}


_Some = set[tuple[str | None, ...]]
