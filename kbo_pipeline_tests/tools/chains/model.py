"""What KBO holds and what the register must hold, in plain Python."""

import datetime
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES, Column, Table
from kbo_pipeline_tests.support.zips import Row

State = Mapping[str, frozenset[Row]]
"""The rows of all tables, by name."""

NUMBERS = ["0200.065.765", "0403.449.823", "1000.000.001", "2.000.000.339", "9.000.006.626"]
TEXTS = [None, "a", 'B, "b"', "c\nd", "e\\", " f\t", "'; DROP TABLE enterprise; --", "é😀", "0999"]
TEXTS += ["=1+1", "\u202e\u05e2\u05d1\u05e8", "é" * 300, '""', "tab\tx", "\r\n"]
ANCHOR: Row = (NUMBERS[0], *(None,) * 6)
"""An enterprise that is never removed, because no Full is without any."""


@dataclass(frozen=True)
class Step:
    """One extract: what it deletes and inserts, by table name, and where that leads KBO."""

    key: ExtractKey
    inserts: Mapping[str, list[Row]]
    deletes: Mapping[str, list[str]]
    truth: State


def applied(rows: State, step: Step) -> State:
    """What an extract makes of some rows."""
    if step.key.type == "full":
        return step.truth
    after = {}
    for table in ALL_TABLES:
        inserts = step.inserts[table.name]
        gone = set(step.deletes.get(table.name, ()))
        if table.unique_key:
            gone |= {str(row[0]) for row in inserts}
        kept = frozenset() if table is CODE else rows[table.name]
        after[table.name] = frozenset(row for row in kept if row[0] not in gone) | {*inserts}
    return after


def next_full(number: int, truth: State) -> Step:
    """The Full of a state."""
    return Step(ExtractKey(number, "full"), {t: [*rows] for t, rows in truth.items()}, {}, truth)


def next_update(number: int, truth: State, chance: random.Random) -> Step:
    """An Update that replaces, adds and deletes some keys, and sends some rows again unchanged."""
    inserts: dict[str, list[Row]] = {CODE.name: some_rows(CODE, chance)}
    deletes: dict[str, list[str]] = {}
    for table in TABLES:
        replaced = {str(row[0]) for row in some_rows(table, chance)}
        again = {str(row[0]) for row in truth[table.name] if chance.random() < 0.3} - replaced
        gone = {str(row[0]) for row in truth[table.name] if chance.random() < 0.2}
        gone -= replaced | again | {NUMBERS[0]}
        rows = [row for key in sorted(replaced) for row in _rows_of(table, key, chance)]
        rows += sorted((row for row in truth[table.name] if row[0] in again), key=repr)
        inserts[table.name] = rows
        deletes[table.name] = sorted(replaced | again | gone)
    step = Step(ExtractKey(number, "update"), inserts, deletes, {})
    return Step(step.key, inserts, deletes, applied(truth, step))


def first_truth(chance: random.Random) -> State:
    """Any state that a Full can have."""
    rows = {}
    for table in ALL_TABLES:
        some = some_rows(table, chance)
        rows[table.name] = (
            frozenset({row[0]: row for row in some}.values())
            if (table.unique_key)
            else frozenset(some)
        )
    enterprises = {row for row in rows["enterprise"] if row[0] != NUMBERS[0]}
    return {**rows, "enterprise": frozenset({ANCHOR, *enterprises})}


def some_rows(table: Table, chance: random.Random) -> list[Row]:
    """Up to four rows of a table."""
    return [_row(table, _key(table, chance), chance) for _ in range(chance.randint(0, 4))]


def _rows_of(table: Table, key: str, chance: random.Random) -> list[Row]:
    count = 1 if table.unique_key else chance.randint(1, 3)
    return [*{_row(table, key, chance): None for _ in range(count)}]


def _key(table: Table, chance: random.Random) -> str:
    return chance.choice(NUMBERS) if table is CODE else str(_value(table.columns[0], chance))


def _row(table: Table, key: str, chance: random.Random) -> Row:
    return (key, *(_value(column, chance) for column in table.columns[1:]))


def _value(column: Column, chance: random.Random) -> str | datetime.date | None:
    if column.number:
        return chance.choice([number for number in NUMBERS if number[0] in column.number])
    if column.type == "DATE":
        day = datetime.date(1830, 10, 4) + datetime.timedelta(days=chance.randrange(70_000))
        return None if chance.random() < 0.3 else day
    return chance.choice(TEXTS)


@dataclass
class Version:
    """A row, and the numbers at which it holds."""

    row: Row
    opened: int
    closed: int | None = None

    def holds_at(self, number: int) -> bool:
        return self.opened <= number and (self.closed is None or self.closed > number)


@dataclass(frozen=True)
class Harm:
    """What a hand does to a current row: `changed`, `missing` or `doubled`."""

    kind: str
    table: Table
    row: Row

    @property
    def key(self) -> tuple[str, str]:
        return self.table.name, str(self.row[0])

    @property
    def changed_row(self) -> Row:
        place = [column.type for column in self.table.columns].index("VARCHAR", 1)
        text = f"{self.row[place] or ''} by hand"
        return (*self.row[:place], text, *self.row[place + 1 :])


@dataclass
class Model:
    """The versions of all rows that the register must have, by table."""

    versions: dict[str, list[Version]] = field(
        default_factory=lambda: {table.name: [] for table in ALL_TABLES}
    )

    def rows_at(self, table: Table, number: int) -> list[Row]:
        """In one order; a row that is there twice stands there twice."""
        rows = [v.row for v in self.versions[table.name] if v.holds_at(number)]
        return sorted(rows, key=repr)

    def state(self, number: int) -> State:
        return {table.name: frozenset(self.rows_at(table, number)) for table in ALL_TABLES}

    def take(self, step: Step) -> None:
        """What an import of an extract does."""
        number = step.key.number
        before = self.state(number)
        after = applied(before, step)
        for table in ALL_TABLES:
            for version in self.versions[table.name]:
                if version.closed is None and version.row not in after[table.name]:
                    version.closed = number
            added = after[table.name] - before[table.name]
            self.versions[table.name] += [Version(row, number) for row in added]

    def undo(self, number: int) -> None:
        """What a rollback of the newest extract does."""
        for table in ALL_TABLES:
            kept = [v for v in self.versions[table.name] if v.opened < number]
            self.versions[table.name] = kept
            for version in kept:
                if version.closed == number:
                    version.closed = None

    def harm(self, harm: Harm) -> None:
        """What a hand does."""
        versions = self.versions[harm.table.name]
        place = next(i for i, v in enumerate(versions) if v.closed is None and v.row == harm.row)
        version = versions[place]
        if harm.kind == "changed":
            version.row = harm.changed_row
        elif harm.kind == "missing":
            del versions[place]
        else:
            versions.append(Version(version.row, version.opened))

    def repair(self, full: Step) -> set[tuple[str, str]]:
        """What `kbo repair` does; the tables and keys that differ from the Full."""
        number = full.key.number
        keys = set()
        for table in ALL_TABLES:
            mine, right = Counter(self.rows_at(table, number)), Counter(full.truth[table.name])
            keys |= {(table.name, str(row[0])) for row in (mine - right) + (right - mine)}
        self.undo(number)
        for name, versions in self.versions.items():
            kept: list[Version] = []
            for version in sorted(versions, key=lambda v: v.opened):
                twice = any(v.row == version.row and v.closed is None for v in kept)
                if version.closed is not None or not twice:
                    kept.append(version)
            self.versions[name] = kept
        self.take(full)
        return keys
