"""Members of made-up ZIPs: rows as CSV text, quoted as KBO quotes it. No opinion about the rows."""

import datetime
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from operator import call

from kbo_pipeline.core.tables import Column, Table
from kbo_pipeline.sample.rows import BUNDLES, Rows, Value

COMPRESSION_LEVEL = 4
"""Less than half the time of level 6, for a tenth more bytes."""

_TEXTS_AT_ONCE = 512
_ROW_TWICE_EVERY = {"activity": 50, "contact": 200, "denomination": 500}  # so many keys


def columns_of(table: Table) -> tuple[Column, ...]:
    """The columns that made-up rows have: those of before KBO's numbers of today, which go on."""
    return tuple(column for column in table.columns if not isinstance(column.since, int))


def csv_header(columns: Iterable[Column]) -> str:
    """The first line of a file."""
    return ",".join(f'"{column.csv_name}"' for column in columns) + "\n"


def csv_rows(table: Table, keyed: Iterable[tuple[str, Rows]]) -> Iterator[str]:
    """The lines of each key, which has rows; a few stand in a file twice, as in the real ones."""
    fields = [_field_writer(column) for column in columns_of(table)[1:]]

    def tails(rows: Rows) -> list[str]:
        """Rows as they stand in the file after their key."""
        return [f",{','.join(map(call, fields, values))}\n" for values in rows]

    tails_of_bundle = lru_cache(BUNDLES)(tails)
    every = _ROW_TWICE_EVERY.get(table.name)
    for position, (key, rows) in enumerate(keyed):
        ends = tails_of_bundle(rows) if isinstance(rows, tuple) else tails(rows)
        start = f'"{key}"'
        yield start + start.join(ends)
        if every and position % every == 0:
            yield start + ends[-1]


def write_member(archive: zipfile.ZipFile, name: str, header: str, texts: Iterable[str]) -> None:
    """Writes a member as its text comes; it gets no date, so that a seed gives the same bytes."""
    with archive.open(name, "w", force_zip64=True) as stream:
        stream.write(header.encode())
        rest = iter(texts)
        while text := "".join(islice(rest, _TEXTS_AT_ONCE)):
            stream.write(text.encode())


def _field_writer(column: Column) -> Callable[[Value], str]:
    if column.type == "DATE":
        return _date
    return _text_or_bare if column.bare_when_empty else _text


@lru_cache(2048)
def _text(value: Value) -> str:
    return '"' + value.replace('"', '""') + '"' if isinstance(value, str) else '""'


@lru_cache(2048)
def _text_or_bare(value: Value) -> str:
    return "" if value is None else _text(value)


def _date(value: Value) -> str:
    if not isinstance(value, datetime.date):
        return ""
    year, month, day = value.isoformat().split("-")
    return f"{day}-{month}-{year}"
