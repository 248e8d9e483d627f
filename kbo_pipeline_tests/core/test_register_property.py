"""Random edit scripts, turned into ZIPs, against a model in plain Python."""

import os
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES, Column, Table
from kbo_pipeline.read.content import hash_of, read_content
from kbo_pipeline.read.net import find_net, moved, net_rows
from kbo_pipeline.read.published import hash_of_state
from kbo_pipeline.read.state_sql import state_at
from kbo_pipeline_tests.support.core import Core, rows_of, sorted_rows
from kbo_pipeline_tests.support.feed import Reader, Rows, rows_as_texts
from kbo_pipeline_tests.support.profiles import (
    check_profiles,
    small_registers_keep_them,  # noqa: F401
)
from kbo_pipeline_tests.support.zips import Row, write_extract

NUMBERS = ["0200.065.765", "0403.449.823", "1000.000.001", "2.000.000.339", "9.000.006.626"]
TEXTS = [None, "a", 'B, "b"', "c\nd", "e\\", " f\t", "'; DROP TABLE enterprise; --", "é😀", "0999"]
TEXTS += ["=1+1", "\u202e\u05e2\u05d1\u05e8", "é" * 300, '""', "tab\tx", "\r\n"]


@dataclass
class Step:
    """One extract: what it deletes and inserts, by table name."""

    key: ExtractKey
    inserts: dict[str, list[Row]]
    deletes: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Model:
    """What the register must hold: for each row of each table, the spans in which it holds."""

    spans: dict[str, dict[Row, list[list[int | None]]]] = field(
        default_factory=lambda: {t.name: {} for t in ALL_TABLES}
    )

    def state(self, table: Table, number: int) -> set[Row]:
        return {
            row
            for row, spans in self.spans[table.name].items()
            for first, last in spans
            if first is not None and first <= number and (last is None or last > number)
        }

    def versions(self, table: Table) -> int:
        return sum(len(spans) for spans in self.spans[table.name].values())

    def take(self, step: Step, previous: int) -> None:
        for table in ALL_TABLES:
            before = self.state(table, previous)
            rows = step.inserts.get(table.name, [])
            if table.unique_key:
                rows = list({row[0]: row for row in rows}.values())
            if step.key.type == "full" or table is CODE:
                after = set(rows)
            else:
                gone = set(step.deletes.get(table.name, []))
                if table.unique_key:
                    gone |= {str(row[0]) for row in rows}
                after = {row for row in before if row[0] not in gone} | set(rows)
            spans = self.spans[table.name]
            for row in before - after:
                spans[row][-1][1] = step.key.number
            for row in after - before:
                spans.setdefault(row, []).append([step.key.number, None])


def _value(column: Column) -> st.SearchStrategy[Any]:
    if column.number:
        return st.sampled_from([number for number in NUMBERS if number[0] in column.number])
    return st.none() | st.dates() if column.type == "DATE" else st.sampled_from(TEXTS)


def _rows(table: Table, fewest: int) -> st.SearchStrategy[list[Row]]:
    key = _value(table.columns[0]) if table is not CODE else st.sampled_from(NUMBERS)
    others = map(_value, table.columns[1:])
    return st.lists(st.tuples(key, *others), min_size=fewest, max_size=5)


def _some(*, whole: bool = False) -> st.SearchStrategy[dict[str, list[Row]]]:
    """Rows for all tables; a Full has some of those that may not be empty."""
    return st.fixed_dictionaries(
        {table.name: _rows(table, int(whole and not table.may_be_empty)) for table in ALL_TABLES}
    )


KEYS = st.fixed_dictionaries(
    {t.name: st.lists(_value(t.columns[0]), max_size=3, unique=True) for t in TABLES}
)


@st.composite
def scripts(draw: st.DrawFn) -> list[Step]:
    """A Full, then Updates and Fulls; some send again what is there, as KBO does."""
    number = 1
    steps = [Step(ExtractKey(number, "full"), draw(_some(whole=True)))]
    model = Model()
    model.take(steps[0], 0)
    for _ in range(draw(st.integers(0, 3))):
        previous = number
        kind = draw(st.sampled_from(["update", "update", "full", "full with a gap"]))
        number += 3 if kind == "full with a gap" else 1
        inserts = draw(_some(whole=kind != "update"))
        deletes: dict[str, list[str]] = {}
        if kind == "update":
            deletes = draw(KEYS)
        for table in TABLES:
            known = sorted_rows(model.state(table, previous))
            again = draw(st.lists(st.sampled_from(known), max_size=6)) if known else []
            inserts[table.name] = again + inserts[table.name]
        step = Step(ExtractKey(number, "update" if kind == "update" else "full"), inserts, deletes)
        model.take(step, previous)
        steps.append(step)
    return steps


def _run(directory: Path, steps: list[Step], order: random.Random | None) -> Core:
    """Imports all steps; in random order and with rollbacks in between, when told so."""
    core = Core(directory, batch_rows=2 if order else 10_000)
    before: list[str] = []
    for step in steps:
        zip_file = write_extract(directory, step.key, step.inserts, step.deletes)
        if order is not None and order.random() < 0.3:
            _roll_back(core, zip_file, order, before)
        core.import_zip(zip_file, order, twice=True)
        if order is not None:
            before.append(core.content_hash())
    return core


def _roll_back(core: Core, zip_file: Path, order: random.Random, before: list[str]) -> None:
    """Imports a ZIP wholly or in part and rolls it back."""
    key = core.stage(zip_file).extract.key
    with core.applying(key) as (register, staged):
        for batch in order.sample(staged.batches, order.randint(0, len(staged.batches))):
            register.apply(staged, batch)
    if order.random() < 0.5:
        core.import_zip(zip_file, order)
    core.rollback(key)
    assert ([core.content_hash()] if core.is_published else []) == before[-1:]


LONG = pytest.param(
    int(os.environ.get("PROPERTY_EXAMPLES", "200")),
    marks=(pytest.mark.long, pytest.mark.rare, pytest.mark.property),
    id="long",
)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("examples", [pytest.param(8, id="short"), LONG])
def test_any_edit_script_in_any_batch_order_gives_the_model(examples: int) -> None:
    check = given(steps=scripts(), seed=st.integers(0, 2**32))(_check)
    settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )(check)()


def _check(steps: list[Step], seed: int) -> None:
    model = Model()
    previous = 0
    for step in steps:
        model.take(step, previous)
        previous = step.key.number
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        core = _run(Path(first), steps, random.Random(seed))
        other = _run(Path(second), steps, None)
        assert core.content_hash() == other.content_hash()
        numbers = [step.key.number for step in steps]
        _compare(core, model, numbers)
        check_profiles(core)
        _follow(core, model, numbers, random.Random(seed))
        _net(core, model, numbers, random.Random(seed))


def _compare(core: Core, model: Model, numbers: list[int]) -> None:
    with core.read() as reader:
        for table in ALL_TABLES:
            newest = model.state(table, numbers[-1])
            assert rows_of(reader, table, f"current.{table.name}") == sorted_rows(newest)
            assert _count(reader, table) == model.versions(table)
            before: set[Row] = set()
            for number in numbers:
                state = model.state(table, number)
                at = rows_of(reader, table, f"{table.name}_at({number})")
                assert at == sorted_rows(state)
                assert _changes(reader, table, number) == {
                    "added": sorted_rows(state - before),
                    "removed": sorted_rows(before - state),
                }
                before = state


def _count(reader: duckdb.DuckDBPyConnection, table: Table) -> int:
    (row,) = reader.execute(f"SELECT count(*) FROM main.{table.name}").fetchall()
    return int(row[0])


def _changes(
    reader: duckdb.DuckDBPyConnection, table: Table, number: int
) -> Mapping[str, list[Row]]:
    source = f"{table.name}_changes({number}) WHERE _change = "
    return {c: rows_of(reader, table, f"{source}'{c}'") for c in ("added", "removed")}


def _follow(core: Core, model: Model, numbers: list[int], order: random.Random) -> None:
    """Reads the feed as one that has the state at the first extract, and from some place on."""
    with core.read_register() as register:
        reader = Reader(_state(model, numbers[0]), register.cursor(numbers[0]))
        for event in register.changes_since(reader.cursor):
            assert event.cursor > reader.cursor
            reader.take(event)
        assert reader.rows == _state(model, numbers[-1])
        if reader.kept:
            place = order.randrange(len(reader.kept))
            rest = list(register.changes_since(reader.kept[place].cursor))
            assert rest == reader.kept[place + 1 :]


def _net(core: Core, model: Model, numbers: list[int], order: random.Random) -> None:
    """Looks at the net changes between two states, and at the hashes that follow from them."""
    since, until = sorted(order.choices(numbers, k=2))
    with core.read() as reader:
        changes = find_net(reader, since, until, "full")
        for table in ALL_TABLES:
            before, after = model.state(table, since), model.state(table, until)
            expected = [("added", *row) for row in after - before]
            expected += [("removed", *row) for row in before - after]
            found = reader.execute(net_rows(table)).fetchall()
            assert sorted_rows(found) == sorted_rows(expected)
        contents = {
            table.name: read_content(reader, table, state_at(table), {"number": since})
            for table in ALL_TABLES
        }
        assert hash_of(moved(contents, changes)) == hash_of_state(reader, until)


def _state(model: Model, number: int) -> Rows:
    return rows_as_texts({table.name: model.state(table, number) for table in TABLES})
