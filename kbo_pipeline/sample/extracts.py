"""Writes made-up extracts: Fulls and Updates, as ZIPs of CSV files written as KBO writes them."""

import datetime
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path

from kbo_pipeline.errors import SettingsError
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.files import replace_atomically
from kbo_pipeline.sample.codes import code_rows
from kbo_pipeline.sample.entities import (
    FIRST_SNAPSHOT,
    Population,
    State,
    Value,
    Values,
    mix,
    open_places,
    start_date,
)
from kbo_pipeline.tables import ALL_TABLES, CODE, TABLES, Column, Table

Progress = Callable[[str, int, int], None]
KeyedRows = tuple[str, Sequence[Values]]
RowsOf = Callable[[Population, int, State, int], Sequence[Values]]
Part = Callable[[Population, int, State], Iterator[KeyedRows]]

_FIXED_TIME = (2025, 1, 1, 0, 0, 0)  # in each ZIP, so that the same seed gives the same bytes
_LINES_AT_ONCE = 1024
_SALT_AGAIN = 1_000_000_007
_KEYS_OF_1000_WITH_A_ROW_TWICE = {"activity": 20, "contact": 5, "denomination": 2}


@dataclass(frozen=True)
class Sample:
    """A made-up register and its extracts.

    Attributes:
        enterprises: about how many enterprises the first Full has, 50 to 2,000,000.
        seed: the same seed gives the same bytes.
        first_number: number of the first Full.
        change_shares: share of the entities that each extract after the first one touches.
        default_share: the share of the extracts beyond.
    """

    enterprises: int = 2000
    seed: int = 1
    first_number: int = 140
    change_shares: tuple[float, ...] = (0.01, 0.0, 0.15, 0.01, 0.02)
    default_share: float = 0.01

    def __post_init__(self) -> None:
        """Checks the size.

        Raises:
            SettingsError: it is out of range.
        """
        if not 50 <= self.enterprises <= 2_000_000:
            raise SettingsError(f"--enterprises: expected 50 to 2000000, found {self.enterprises}")

    def rows(self, table: str, number: int) -> Iterator[tuple[Value, ...]]:
        """The true rows of a table after an extract, as the register stores them, by key."""
        if table == CODE.name:
            yield from code_rows(number)
            return
        for key, rows in self._keyed_rows(table, number):
            yield from ((key, *values) for values in rows)

    def write_full(self, directory: Path, number: int, progress: Progress | None = None) -> Path:
        """Writes the Full of a number; returns the ZIP."""
        members = {
            f"{table.name}.csv": (table.columns, self._full_lines(table, number))
            for table in ALL_TABLES
        }
        return self._write(directory, ExtractKey(number, "full"), members, progress)

    def write_update(self, directory: Path, number: int, progress: Progress | None = None) -> Path:
        """Writes the Update that takes the register from the number before to this one."""
        touched = array("q", (i for i in range(self._slots) if self._touched(i, number)))
        members: dict[str, tuple[Sequence[Column], Iterable[str]]] = {
            "code.csv": (CODE.columns, self._full_lines(CODE, number))
        }
        for table in TABLES:
            members[f"{table.name}_delete.csv"] = (
                table.columns[:1],
                (f'"{key}"' for key, before, _ in self._sent(table, touched, number) if before),
            )
            members[f"{table.name}_insert.csv"] = (
                table.columns,
                _lines(
                    table, ((key, after) for key, _, after in self._sent(table, touched, number))
                ),
            )
        return self._write(directory, ExtractKey(number, "update"), members, progress)

    @property
    def _slots(self) -> int:
        return self.enterprises + self.enterprises // 10

    @cached_property
    def _population(self) -> Population:
        return Population(self.seed, self._slots)

    def _touched(self, index: int, number: int) -> bool:
        place = number - self.first_number - 1
        share = self.change_shares[place] if place < len(self.change_shares) else self.default_share
        return self._population.touched(index, number, share)

    def _state(self, index: int, number: int) -> State:
        state = self._population.first_state(index)
        for earlier in range(self.first_number + 1, number + 1):
            if self._touched(index, earlier):
                self._population.touch(state, index, earlier)
        return state

    def _keyed_rows(self, table: str, number: int) -> Iterator[KeyedRows]:
        """The rows of each key, in the order of keys: one pass for each kind of entity."""
        for part in _PARTS[table]:
            for index in range(self._slots):
                state = self._state(index, number)
                if state.alive:
                    yield from part(self._population, index, state)

    def _sent(
        self, table: Table, touched: Iterable[int], number: int
    ) -> Iterator[tuple[str, Sequence[Values], Sequence[Values]]]:
        """What an Update sends: key, rows before, rows after.

        As the real ones do, it also sends rows that did not change.
        """
        population = self._population
        for part in _PARTS[table.name]:
            for index in touched:
                states = (self._state(index, number - 1), self._state(index, number))
                before, after = (
                    dict(part(population, index, s)) if s.alive else {} for s in states
                )
                again = mix(self.seed, index, number + _SALT_AGAIN) % 4 == 0
                for key in sorted({**before, **after}):
                    old, new = before.get(key, ()), after.get(key, ())
                    if again or list(old) != list(new):
                        yield key, old, new

    def _full_lines(self, table: Table, number: int) -> Iterator[str]:
        if table is CODE:
            return _lines(table, ((row[0], [row[1:]]) for row in code_rows(number)))
        return _lines(table, self._keyed_rows(table.name, number))

    def _write(
        self,
        directory: Path,
        key: ExtractKey,
        members: Mapping[str, tuple[Sequence[Column], Iterable[str]]],
        progress: Progress | None,
    ) -> Path:
        snapshot = FIRST_SNAPSHOT + datetime.timedelta(key.number - self.first_number)
        published = snapshot + datetime.timedelta(1)
        name = f"KboOpenData_{key.number:04d}_{published:%Y_%m_%d}_{key.type.capitalize()}.zip"
        meta = (
            ("SnapshotDate", f"{snapshot:%d-%m-%Y}"),
            ("ExtractTimestamp", f"{published:%d-%m-%Y} 07:40:18"),
            ("ExtractType", key.type),
            ("ExtractNumber", str(key.number)),
            ("Version", "1.0.0"),
        )
        target = directory / name
        with (
            replace_atomically(target) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive,
        ):
            rows = (f'"{variable}","{value}"' for variable, value in meta)
            _write_member(archive, "meta.csv", '"Variable","Value"', rows)
            for done, (member, (columns, lines)) in enumerate(members.items()):
                if progress is not None:
                    progress(f"{key} {member}", done, len(members))
                header = ",".join(f'"{column.csv_name}"' for column in columns)
                _write_member(archive, member, header, lines)
        return target


def write_sample(
    directory: Path, sample: Sample, updates: int = 5, progress: Progress | None = None
) -> list[Path]:
    """Writes a Full, Updates after it, and a later Full; returns the ZIPs in number order.

    Args:
        directory: where to; made when it is not there.
        sample: what to write.
        updates: Updates between the two Fulls.
        progress: takes what is being written, and how much of it is done of how much.
    """
    first, last = sample.first_number, sample.first_number + updates + 1
    files = [sample.write_full(directory, first, progress)]
    files += [sample.write_update(directory, n, progress) for n in range(first + 1, last)]
    return [*files, sample.write_full(directory, last, progress)]


def _enterprise_part(rows: RowsOf) -> Part:
    def part(population: Population, index: int, state: State) -> Iterator[KeyedRows]:
        yield population.enterprise_number(index), rows(population, index, state, -1)

    return part


def _establishment_part(rows: RowsOf) -> Part:
    def part(population: Population, index: int, state: State) -> Iterator[KeyedRows]:
        for place in open_places(state):
            number = population.establishment_number(index, place)
            yield number, rows(population, index, state, place)

    return part


def _branch_part(rows: RowsOf) -> Part:
    def part(population: Population, index: int, state: State) -> Iterator[KeyedRows]:
        if population.is_foreign(index):
            yield population.branch_number(index), rows(population, index, state, 0)

    return part


_PARTS: dict[str, tuple[Part, ...]] = {
    "enterprise": (_enterprise_part(lambda p, i, s, _: p.enterprise_rows(i, s)),),
    "establishment": (
        _establishment_part(
            lambda p, i, _, place: [(start_date(i, place), p.enterprise_number(i))]
        ),
    ),
    "denomination": (
        _enterprise_part(lambda p, i, s, _: p.names(i, s)),
        _establishment_part(lambda p, i, s, place: p.establishment_names(i, s, place)),
    ),
    "address": (
        _enterprise_part(lambda p, i, s, _: p.addresses(i, s, "REGO")),
        _establishment_part(lambda p, i, s, place: p.addresses(i, s, "BAET", place)),
        _branch_part(lambda p, i, s, _: p.addresses(i, s, "ABBR")),
    ),
    "contact": (
        _enterprise_part(lambda p, i, s, _: p.contacts(i, s, "ENT")),
        _establishment_part(lambda p, i, s, place: p.contacts(i, s, "EST") if not place else []),
    ),
    "activity": (
        _enterprise_part(lambda p, i, s, place: p.activities(i, s, place)),
        _establishment_part(lambda p, i, s, place: p.activities(i, s, place)),
    ),
    "branch": (_branch_part(lambda p, i, _, __: [(start_date(i, 0), p.enterprise_number(i))]),),
}
"""The kinds of entities that have rows in a table, in the order of their numbers."""


def _lines(table: Table, keyed: Iterable[KeyedRows]) -> Iterator[str]:
    """The lines of a CSV file; a few rows stand in it twice, as in the real ones."""
    columns = table.columns[1:]
    twice = _KEYS_OF_1000_WITH_A_ROW_TWICE.get(table.name, 0)
    first = True
    for key, rows in keyed:
        tails = _known_tails(columns, rows) if isinstance(rows, tuple) else _tails(columns, rows)
        for tail in tails:
            yield f'"{key}"{tail}'
        if rows and twice and (first or zlib.crc32(key.encode()) % 1000 < twice):
            yield f'"{key}"{tails[-1]}'
            first = False


def _tails(columns: tuple[Column, ...], rows: Iterable[Values]) -> list[str]:
    """Rows as they stand in the file after their key."""
    return [
        "".join([f",{_field(c, v)}" for c, v in zip(columns, values, strict=True)])
        for values in rows
    ]


_known_tails = lru_cache(8192)(_tails)
"""The same for the bundles of activities, which are tuples: they come again and again."""


def _field(column: Column, value: Value) -> str:
    if isinstance(value, str):
        return '"' + value.replace('"', '""') + '"'
    if value is None:
        return "" if column.bare_when_empty else '""'
    return f"{value.day:02d}-{value.month:02d}-{value.year:04d}"


def _write_member(archive: zipfile.ZipFile, name: str, header: str, lines: Iterable[str]) -> None:
    member = zipfile.ZipInfo(name, _FIXED_TIME)
    member.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(member, "w", force_zip64=True) as stream:
        stream.write(f"{header}\n".encode())
        rest = iter(lines)
        while chunk := list(islice(rest, _LINES_AT_ONCE)):
            stream.write(("\n".join(chunk) + "\n").encode())
