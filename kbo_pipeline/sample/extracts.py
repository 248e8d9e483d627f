"""Writes made-up extracts: Fulls and Updates, as ZIPs of CSV files in KBO's format."""

import datetime
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from operator import call
from pathlib import Path

from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import replace_atomically
from kbo_pipeline.core.tables import CODE, TABLES, Column, Table
from kbo_pipeline.sample.entities import Population
from kbo_pipeline.sample.rows import BUNDLES, Rows, Value, code_rows, keyed_rows, sent_rows

Progress = Callable[[str, int, int], None]
Member = tuple[str, Sequence[Column], Iterable[str]]
"""A file in a ZIP: name, columns, text after the header."""


@dataclass(frozen=True)
class Sample:
    """A made-up register and its extracts.

    Attributes:
        enterprises: how many enterprises the first Full has, 50 to 2,000,000.
        seed: the same seed gives the same bytes; 0 or more.
        first_number: number of the first Full; 1 or more.
        change_shares: share, 0 to 1, of the entities that each extract after the first one touches.
        default_share: that of all further extracts.
    """

    enterprises: int = 2000
    seed: int = 1
    first_number: int = 140
    change_shares: tuple[float, ...] = (0.01, 0.0, 0.15, 0.01, 0.02)
    default_share: float = 0.01

    def __post_init__(self) -> None:
        """Refuses values out of range with a `SettingsError`."""
        if not 50 <= self.enterprises <= 2_000_000:
            raise SettingsError(f"--enterprises: expected 50 to 2000000, found {self.enterprises}")
        _at_least(0, "--seed", self.seed)
        _at_least(1, "first_number", self.first_number)
        for share in (*self.change_shares, self.default_share):
            if not 0 <= share <= 1:
                raise SettingsError(f"share of changes: expected 0 to 1, found {share}")

    def rows(self, table: str, number: int) -> Iterator[tuple[Value, ...]]:
        """The true rows of a table after an extract, as the register stores them, by key."""
        if table == CODE.name:
            yield from code_rows(number)
            return
        for key, rows in keyed_rows(self._population, table, number):
            yield from ((key, *values) for values in rows)

    def write_full(self, directory: Path, number: int, progress: Progress | None = None) -> Path:
        """Writes the Full of a number; returns the ZIP.

        Raises:
            SettingsError: the number is lower than the first one.
        """
        _at_least(self.first_number, "number of a Full", number)
        members = [
            (
                f"{table.name}.csv",
                columns_of(table),
                csv_rows(table, keyed_rows(self._population, table.name, number)),
            )
            for table in TABLES
        ]
        return self._write(directory, ExtractKey(number, "full"), members, progress)

    def write_update(self, directory: Path, number: int, progress: Progress | None = None) -> Path:
        """Writes the Update that takes the register from the number before to this one.

        Raises:
            SettingsError: there is no number before.
        """
        _at_least(self.first_number + 1, "number of an Update", number)
        members = [member for table in TABLES for member in self._update_members(table, number)]
        return self._write(directory, ExtractKey(number, "update"), members, progress)

    @cached_property
    def _population(self) -> Population:
        return Population(
            self.seed,
            self.enterprises,
            self.first_number,
            self.change_shares,
            self.default_share,
        )

    def _update_members(self, table: Table, number: int) -> Iterator[Member]:
        def sent() -> Iterator[tuple[str, Rows, Rows]]:
            return sent_rows(self._population, table.name, number)

        deleted = (f'"{key}"\n' for key, before, _ in sent() if before)
        yield f"{table.name}_delete.csv", table.columns[:1], deleted
        inserted = csv_rows(table, ((key, after) for key, _, after in sent() if after))
        yield f"{table.name}_insert.csv", columns_of(table), inserted

    def _write(
        self,
        directory: Path,
        key: ExtractKey,
        members: Sequence[Member],
        progress: Progress | None,
    ) -> Path:
        snapshot = self._population.snapshot_date(key.number)
        published = snapshot + datetime.timedelta(1)
        name = f"KboOpenData_{key.number:04d}_{published:%Y_%m_%d}_{key.type.capitalize()}.zip"
        meta = (
            ("SnapshotDate", f"{snapshot:%d-%m-%Y}"),
            ("ExtractTimestamp", f"{published:%d-%m-%Y} 07:40:18"),
            ("ExtractType", key.type),
            ("ExtractNumber", str(key.number)),
            ("Version", "1.0.0"),
        )
        codes = csv_rows(CODE, ((row[0], [row[1:]]) for row in code_rows(key.number)))
        members = [("code.csv", columns_of(CODE), codes), *members]
        target = directory / name
        with (
            replace_atomically(target) as temporary,
            zipfile.ZipFile(
                temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL
            ) as archive,
        ):
            write_member(
                archive, "meta.csv", '"Variable","Value"\n', (f'"{k}","{v}"\n' for k, v in meta)
            )
            for done, (member, columns, texts) in enumerate(members):
                if progress is not None:
                    progress(f"{key} {member}", done, len(members))
                write_member(archive, member, csv_header(columns), texts)
        return target


def write_sample(
    directory: Path, sample: Sample, updates: int = 5, progress: Progress | None = None
) -> list[Path]:
    """Writes a Full, Updates after it, and a later Full; returns the ZIPs in number order.

    Raises:
        SettingsError: `updates` is negative.
    """
    _at_least(0, "--updates", updates)
    first, last = sample.first_number, sample.first_number + updates + 1
    files = [sample.write_full(directory, first, progress)]
    files += [sample.write_update(directory, n, progress) for n in range(first + 1, last)]
    return [*files, sample.write_full(directory, last, progress)]


def _at_least(lowest: int, name: str, value: int) -> None:
    if value < lowest:
        raise SettingsError(f"{name}: expected {lowest} or more, found {value}")


COMPRESSION_LEVEL = 4
"""Less than half the time of level 6, for a tenth more bytes."""
_TEXTS_AT_ONCE = 512
_ROW_TWICE_EVERY = {"activity": 50, "contact": 200, "denomination": 500}  # so many keys


def columns_of(table: Table) -> tuple[Column, ...]:
    """The columns that made-up rows have: all but those that KBO adds from an extract on."""
    return tuple(column for column in table.columns if not isinstance(column.since, int))


def csv_header(columns: Iterable[Column]) -> str:
    """The first line of a file."""
    return ",".join(f'"{column.csv_name}"' for column in columns) + "\n"


def csv_rows(table: Table, keyed: Iterable[tuple[str, Rows]]) -> Iterator[str]:
    """The lines of each key; a few stand in a file twice, as in the real ones."""
    fields = [_field_writer(column) for column in columns_of(table)[1:]]

    def tails(rows: Rows) -> list[str]:
        """Rows in the file, without their key."""
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
    """Writes a member as its text comes; without a date, so that a seed gives the same bytes."""
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
