"""Row versions in words, and the history of an enterprise. No I/O."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date
from functools import partial
from typing import Any

from kbo_pipeline.core.tables import ENTERPRISE, TABLES, Table
from kbo_pipeline.read.types import HistoryEvent, Language, Term

Row = Mapping[str, Any]
"""A row of a table by the names of its columns; row versions have `_extract_number` and
`_deleted_at_extract` besides."""
_FALLBACK: tuple[Language, ...] = ("nl", "fr", "de")


def codes_in(versions: Mapping[Table, Iterable[Row]]) -> tuple[str, ...]:
    """All codes that occur in rows of tables."""
    codes = {
        row[column.name]
        for table, rows in versions.items()
        for column in table.columns
        if column.code_category
        for row in rows
    }
    return tuple(sorted(codes - {None}))


class Meanings:
    """The meanings of codes in a language, or in another one where KBO has none in it.

    Args:
        rows: of the table `code`: category, code, language, description.
        language: the preferred language.
    """

    def __init__(self, rows: Iterable[tuple[str, str, str, str]], language: Language) -> None:
        order = (language, *_FALLBACK)
        self._texts: dict[tuple[str, str], str] = {}
        known = {(category, code, kind.lower()): text for category, code, kind, text in rows}
        for category, code, _ in known:
            texts = (known.get((category, code, language)) for language in order)
            meaning = next((text for text in texts if text is not None), None)
            if meaning is not None:
                self._texts[category, code] = meaning

    def term(self, table: Table, row: Row, name: str) -> Term | None:
        """The value of a column that holds codes, with its meaning; None when it has none."""
        code = row[name]
        category = next(c.code_category for c in table.columns if c.name == name)
        if code is None or category is None:
            return None
        return Term(code, self._texts.get((category.format(**row), code)))

    def in_words(self, table: Table, row: Row, names: Iterable[str] | None = None) -> str:
        """A row in words, without its key; or these of its columns."""
        values = (
            self.term(table, row, name) or row[name]
            for name in (table.column_names[1:] if names is None else names)
        )
        return ", ".join(str(value) for value in values if value is not None)


_Step = tuple[list[Row], list[Row]]
"""The rows of a key that an extract removed, and those that it added."""


def history(
    versions: Mapping[Table, Iterable[Row]],
    at: int,
    dates: Mapping[int, date],
    meanings: Meanings,
) -> tuple[HistoryEvent, ...]:
    """All events of an enterprise up to an extract, the newest first.

    What came or went together with the enterprise itself is left out.

    Args:
        versions: its own row versions by table, and those of its establishment units and branches
            in their tables, none that began after `at`.
        at: number of the extract.
        dates: snapshot dates by number of extract.
        meanings: of the codes in the rows.
    """
    steps = {table: _steps(table, rows, at) for table, rows in versions.items()}
    whole = {
        number
        for (number, _), (removed, added) in steps[ENTERPRISE].items()
        if not (removed and added)
    }
    events = []
    for table, of_table in steps.items():
        for (number, key), (removed, added) in of_table.items():
            if number in whole and table is not ENTERPRISE:
                continue
            event = partial(HistoryEvent, number, dates[number])
            if table.unique_key and removed and added:
                names = [n for n in table.column_names if removed[0][n] != added[0][n]]
                before, after = (meanings.in_words(table, r[0], names) for r in (removed, added))
                events.append(event("changed", table.name, key, before, after))
                continue
            for row in removed:
                text = meanings.in_words(table, row)
                events.append(event("removed", table.name, key, text, None))
            for row in added:
                text = meanings.in_words(table, row)
                events.append(event("added", table.name, key, None, text))
    order = {table.name: place for place, table in enumerate(TABLES)}
    events.sort(key=lambda e: (-e.extract_number, order[e.table], e.entity_number))
    return tuple(events)


def _steps(table: Table, rows: Iterable[Row], at: int) -> dict[tuple[int, str], _Step]:
    """The rows of each key that each extract removed and added."""
    steps: dict[tuple[int, str], _Step] = defaultdict(lambda: ([], []))
    for row in rows:
        key, end = row[table.key], row["_deleted_at_extract"]
        steps[row["_extract_number"], key][1].append(row)
        if end is not None and end <= at:
            steps[end, key][0].append(row)
    return steps
