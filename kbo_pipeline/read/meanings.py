"""What KBO's codes mean, and rows in words. No I/O."""

from collections.abc import Iterable, Mapping
from typing import Any

from kbo_pipeline.core.tables import Table
from kbo_pipeline.read.types import Language, Term

Row = Mapping[str, Any]
"""A row of a table by the names of its columns; row versions have `_extract_number` and
`_deleted_at_extract` besides."""

_FALLBACK: tuple[Language, ...] = ("nl", "fr", "de")


def codes_in(versions: Mapping[Table, Iterable[Row]]) -> tuple[str, ...]:
    """All codes that occur in rows of tables."""
    found = {
        row[column.name]
        for table, rows in versions.items()
        for column in table.columns
        if column.code_category
        for row in rows
    }
    return tuple(sorted(found - {None}))


class Meanings:
    """What codes mean in a language, or where KBO does not say it in that one, in another.

    Args:
        rows: of the table `code`: category, code, language, description.
        language: the language that goes first.
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
