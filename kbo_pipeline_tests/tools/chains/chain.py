"""One random chain: a register to which extracts, people and a hand do something, and its readers.

After each event, what readers of the register have, and the rows of those that follow the feed by
its events alone, are compared with the models.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import duckdb

from kbo_pipeline.core.errors import ExportError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES, TABLES
from kbo_pipeline.publish.verification import prove
from kbo_pipeline.read.apply_delta import apply_delta
from kbo_pipeline.read.content import Contents, hash_of, read_content
from kbo_pipeline.read.export import write_delta, write_export
from kbo_pipeline.read.manifest import read_export
from kbo_pipeline.read.net import contents_at, find_net, moved, net_rows
from kbo_pipeline.read.published import hash_of_state
from kbo_pipeline.read.state_sql import state_at
from kbo_pipeline.read.types import ROLLED_BACK
from kbo_pipeline_tests.support.core import Core, current_rows, rows_of, sorted_rows
from kbo_pipeline_tests.support.feed import Reader, Rows, rows_as_texts
from kbo_pipeline_tests.support.zips import Row, write_extract
from kbo_pipeline_tests.tools.chains.model import (
    Harm,
    Model,
    State,
    Step,
    first_truth,
    next_full,
    next_update,
)

EVENTS_OF_A_CHAIN = 4
_MOST_FOLLOWERS = 3


@dataclass(frozen=True)
class Base:
    """The rows of a published state, as somebody keeps them, and their content hash."""

    key: ExtractKey
    rows: State
    content_hash: str
    export: Path | None


@dataclass
class Follower:
    """A reader of the feed.

    Attributes:
        is_misled: it has read rows that a hand had made; no event says that they change by a hand,
            so it is compared until then only.
    """

    reader: Reader
    is_misled: bool


class Chain:
    """A register, the extracts that it was made of, its model, and its readers.

    Attributes:
        counts: how often what was done or compared.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._directory = directory
        self._chance = random.Random(seed)
        self._core = self._new_core()
        self._model = Model()
        self._published: list[tuple[Step, Path]] = []
        self._followers: list[Follower] = []
        self._bases: list[Base] = []
        self._is_counted = True
        """Whether content hashes are right: a hand has changed nothing that nobody has found."""

    def _new_core(self) -> Core:
        self.counts["registers"] += 1
        return Core(
            self._directory / f"data{self.counts['registers']}",
            batch_rows=self._chance.choice((2, 4, 1000)),
            threads=1,
        )

    @property
    def _number(self) -> int:
        return self._published[-1][0].key.number

    @property
    def _truth(self) -> State:
        return self._published[-1][0].truth

    @property
    def _is_right(self) -> bool:
        """Whether the newest state is what KBO has, and not what a hand has made of it."""
        return self._model.state(self._number) == self._truth

    def run(self, events: int) -> None:
        """Makes the register, lets so many events happen to it, and compares all there is."""
        self._import(next_full(1, first_truth(self._chance)))
        for _ in range(events):
            happens = self._chance.choices([*_EVENTS], [*_EVENTS.values()])[0]
            self.counts[happens.__name__.strip("_")] += 1
            happens(self)
            self._compare_newest()
            self._begin_something()
            self._poll()
        self._compare_history()
        self._poll(all_of_it=True)
        self._compare_net()
        for base in self._bases:
            self._compare_base(base)

    def _import(self, step: Step) -> None:
        zip_file = write_extract(self._directory, step.key, step.inserts, step.deletes)
        self._core.import_zip(zip_file, self._chance, twice=True)
        self._model.take(step)
        self._published.append((step, zip_file))

    def _update(self) -> None:
        self._import(next_update(self._number + 1, self._truth, self._chance))

    def _full(self) -> None:
        """The next Full, or one after a gap."""
        after = next_update(0, self._truth, self._chance).truth
        self._import(next_full(self._number + self._chance.choice((1, 1, 3)), after))

    def _half_and_back(self) -> None:
        """An extract of which some batches are applied, rolled back."""
        step = next_update(self._number + 1, self._truth, self._chance)
        zip_file = write_extract(self._directory, step.key, step.inserts, step.deletes)
        self._core.stage(zip_file)
        with self._core.applying(step.key) as (register, staged):
            some = self._chance.randint(0, len(staged.batches))
            for batch in self._chance.sample(staged.batches, some):
                register.apply(staged, batch)
        self._core.rollback(step.key)

    def _roll_back(self) -> None:
        """The newest extract is undone; often it comes again."""
        if len(self._published) == 1:
            return
        step, zip_file = self._undo_newest()
        if self._chance.random() < 0.5:
            self._core.import_zip(zip_file, self._chance)
            self._model.take(step)
            self._published.append((step, zip_file))

    def _undo_newest(self) -> tuple[Step, Path]:
        """Undoes it; where a repair is undone, what a hand has made may be there again."""
        step, zip_file = self._published.pop()
        self._core.rollback(step.key)
        self._model.undo(step.key.number)
        if not self._is_right:
            self._followers.clear()
            self._is_counted = False
        return step, zip_file

    def _repair(self) -> None:
        """A hand changes rows of the newest state, which `kbo repair` closes."""
        harms = self._harms()
        full = next_full(self._number, self._truth)
        zip_file = write_extract(self._directory, full.key, full.inserts)
        if self._is_right and self._chance.random() < 0.2:
            self._repair_the_copy(harms, zip_file)
            return
        self._mislead()
        for harm in harms:
            self._model.harm(harm)
        self._do(harms, [self._core.register_file, self._core.database])
        if self._chance.random() < 0.4:
            self._prove(zip_file, is_equal=False)
        keys = self._model.repair(full)
        assert self._core.repair(zip_file).keys == len(keys)
        self._published[-1] = (full, zip_file)
        if len(self._published) == 1:
            self._followers.clear()  # there is no state before that they could go back to
        assert {(name, key) for _, name, key in self._corrections(full.key.number)} == keys
        self._is_counted = True
        if self._chance.random() < 0.4:
            self._prove(zip_file, is_equal=True)

    def _repair_the_copy(self, harms: list[Harm], zip_file: Path) -> None:
        """Only what readers open was changed: they get another copy."""
        self.counts["copies"] += 1
        self._do(harms, [self._core.database])
        self._prove(zip_file, is_equal=False)
        key = self._core.stage(zip_file).extract.key
        assert self._core.begin_repair(key).keys == 0

    def _repair_and_back(self) -> None:
        """A repair is rolled back: what the hand has changed of earlier extracts is there again."""
        self._repair()
        if len(self._published) > 1:
            self._poll(all_of_it=self._chance.random() < 0.5)
            self._undo_newest()

    def _mislead(self) -> None:
        """What a hand changes: who lags behind will read it as it is then."""
        self._followers = [follower for follower in self._followers if not follower.is_misled]
        self._poll()
        with self._core.read_register() as register:
            newest = register.cursor()
        for follower in self._followers:
            follower.is_misled = follower.reader.cursor[:17] != newest[:17]

    def _rebuild(self) -> None:
        """The register is made again of the ZIPs of what is published."""
        first, corrections = self._published[0][0].key.number, self._corrections()
        self._followers = [follower for follower in self._followers if not follower.is_misled]
        if first in {number for number, *_ in corrections}:
            self._followers.clear()  # it is another state, and there is none before
        is_same = not corrections and self._is_right_since(first)
        events = self._all_events()
        self._core, self._model = self._new_core(), Model()
        for step, zip_file in self._published:
            self._core.import_zip(zip_file)
            self._model.take(step)
        self._is_counted = True
        if is_same:
            assert self._all_events() == events

    def _corrections(self, since: int = 0) -> list[tuple[int, str, str]]:
        """Number, table and key of each, from an extract on."""
        query = "SELECT extract_number, table_name, key FROM correction WHERE extract_number >= $1"
        with self._core.read() as reader:
            return [
                (number, name, key)
                for number, name, key in reader.execute(query, [since]).fetchall()
            ]

    def _is_right_since(self, number: int) -> bool:
        """Whether all states from a number on are what KBO had then."""
        steps = [step for step, _ in self._published if step.key.number >= number]
        return all(self._model.state(step.key.number) == step.truth for step in steps)

    def _all_events(self) -> list[object]:
        with self._core.read_register() as register:
            return list(register.changes_since(self._published[0][0].key.number))

    def _harms(self) -> list[Harm]:
        """One to three, of rows of different keys."""
        rows = [(t, row) for t in ALL_TABLES for row in self._model.rows_at(t, self._number)]
        harms: dict[tuple[str, str], Harm] = {}
        for table, row in self._chance.sample(rows, min(len(rows), self._chance.randint(1, 3))):
            harm = Harm(self._chance.choice(("changed", "missing", "doubled")), table, row)
            harms.setdefault(harm.key, harm)
        return [*harms.values()]

    def _do(self, harms: list[Harm], files: list[Path]) -> None:
        for file in files:
            with duckdb.connect(str(file)) as register:
                for harm in harms:
                    _execute(register, harm)

    def _prove(self, full: Path, *, is_equal: bool) -> None:
        self.counts["proofs"] += 1
        assert prove(self._core.all_settings(), self._number, zip_file=full).is_equal is is_equal
        self._is_counted = True

    def _begin_something(self) -> None:
        """Now and then another reader begins, or somebody keeps an export."""
        if len(self._followers) < _MOST_FOLLOWERS and self._chance.random() < 0.5:
            number = self._chance.choice(self._published)[0].key.number
            with self._core.read_register() as register:
                reader = Reader(_as_texts(self._model.state(number)), register.cursor(number))
            self._followers.append(Follower(reader, not self._is_right_since(number)))
            self.counts["readers"] += 1
        if self._is_counted and self._chance.random() < 0.3:
            self._keep_base()

    def _keep_base(self) -> None:
        key, export = self._published[-1][0].key, None
        if self._chance.random() < 0.2:
            export = self._directory / f"export{len(self._bases)}"
            content_hash = write_export(self._core.all_settings(), export).state.content_hash
        else:
            content_hash = self._counted()
        self._bases.append(Base(key, self._model.state(key.number), content_hash, export))

    def _counted(self) -> str:
        """The hash of the newest state, as the manifests of exports have it."""
        with self._core.read() as reader:
            contents = contents_at(
                reader, self._core.all_settings(), self._number, lambda line: None
            )
        return hash_of(contents)

    def _poll(self, *, all_of_it: bool = False) -> None:
        """Readers go on, some of them only for a few events: they are killed."""
        for follower in [*self._followers]:
            if not all_of_it and self._chance.random() < 0.5:
                continue
            most = None if all_of_it or self._chance.random() < 0.6 else self._chance.randint(0, 5)
            if not self._follow(follower.reader, most):
                self._followers.remove(follower)

    def _follow(self, reader: Reader, most: int | None) -> bool:
        """Whether a reader can go on; it cannot where the state that it began with is undone."""
        last = reader.cursor
        with self._core.read_register() as register:
            for event in islice(register.changes_since(reader.cursor), most):
                if event.kind == ROLLED_BACK and event.cursor < reader.begun:
                    return False
                assert event.kind == ROLLED_BACK or event.cursor > last
                reader.take(event)
                last = event.cursor
                self.counts["events"] += 1
        if most is None:
            assert reader.rows == _as_texts(self._model.state(self._number))
            self.counts["readers compared"] += 1
        return True

    def _compare_newest(self) -> None:
        with self._core.read() as reader:
            for table in ALL_TABLES:
                expected = self._model.rows_at(table, self._number)
                assert current_rows(reader, table) == expected, table.name

    def _compare_history(self) -> None:
        with self._core.read() as reader:
            for step, _ in self._published:
                for table in ALL_TABLES:
                    at = rows_of(reader, table, f"{table.name}_at({step.key.number})")
                    assert at == self._model.rows_at(table, step.key.number), table.name

    def _compare_net(self) -> None:
        """The net changes between two random states, and the hashes that follow from them."""
        keys = sorted(self._chance.choices([s.key.number for s, _ in self._published], k=2))
        since, until = keys
        before, after = self._model.state(since), self._model.state(until)
        with self._core.read() as reader:
            changes = find_net(reader, since, until, "full")
            for table in ALL_TABLES:
                found = reader.execute(net_rows(table)).fetchall()
                gone, came = before[table.name] - after[table.name], after[table.name]
                came -= before[table.name]
                expected = [("added", *row) for row in came] + [("removed", *row) for row in gone]
                assert sorted_rows(found) == sorted_rows(expected)
            target = moved(_contents(reader, since), changes)
            assert hash_of(target) == hash_of_state(reader, until)
        self.counts["pairs of states"] += 1

    def _compare_base(self, base: Base) -> None:
        """Base and delta are the target; or they do not fit, because the base was undone."""
        newest = self._published[-1][0].key
        if not self._is_counted or base.key not in [step.key for step, _ in self._published]:
            return
        fits = self._model.state(base.key.number) == base.rows
        counted = self._counted()
        with self._core.read() as reader:
            assert counted == hash_of_state(reader, newest.number)
            changes = find_net(reader, base.key.number, newest.number, "full")
            target = _contents(reader, newest.number)
            assert (hash_of(moved(target, changes, back=True)) == base.content_hash) is fits
            for table in ALL_TABLES if fits else ():
                rows = {*base.rows[table.name]}
                for change, *values in reader.execute(net_rows(table)).fetchall():
                    row: Row = tuple(values)
                    assert (row in rows) is (change == "removed")
                    rows ^= {row}
                assert rows == {*self._model.state(newest.number)[table.name]}
        self.counts["bases that fit" if fits else "bases that do not"] += 1
        if base.export is not None:
            self._apply_delta(base.export, counted, fits=fits)

    def _apply_delta(self, export: Path, counted: str, *, fits: bool) -> None:
        settings, delta = self._core.all_settings(), export.with_name(f"{export.name}_delta")
        done = write_delta(settings, delta, read_export(export).extract)
        assert done.target.content_hash == counted
        try:
            applied, _ = apply_delta(settings, export, delta)
        except ExportError:
            assert not fits
            return
        assert fits and applied.state.content_hash == counted
        self.counts["deltas applied"] += 1


_EVENTS: dict[Callable[[Chain], None], float] = {
    Chain._update: 5,
    Chain._full: 2,
    Chain._half_and_back: 1,
    Chain._roll_back: 2,
    Chain._repair: 2,
    Chain._repair_and_back: 1,
    Chain._rebuild: 0.7,
}
"""What happens to a register, and how often."""


def _as_texts(state: State) -> Rows:
    return rows_as_texts({table.name: state[table.name] for table in TABLES})


def _contents(reader: duckdb.DuckDBPyConnection, number: int) -> Contents:
    return {
        table.name: read_content(reader, table, state_at(table), {"number": number})
        for table in ALL_TABLES
    }


def _execute(register: duckdb.DuckDBPyConnection, harm: Harm) -> None:
    """Does in a file what a hand does."""
    name, columns = harm.table.name, harm.table.column_names
    same = " AND ".join(f"{column} IS NOT DISTINCT FROM ?" for column in columns)
    where = f"WHERE _is_current AND {same}"
    if harm.kind == "missing":
        register.execute(f"DELETE FROM {name} {where}", harm.row)
    elif harm.kind == "doubled":
        register.execute(f"INSERT INTO {name} FROM {name} {where}", harm.row)
    else:
        values = ", ".join(f"{column} = ?" for column in columns)
        register.execute(f"UPDATE {name} SET {values} {where}", [*harm.changed_row, *harm.row])
