"""A year of extracts: each week is proven, and what a hand has changed is found and repaired."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.core.tables import ALL_TABLES, Table
from kbo_pipeline.publish.verification import Verification, prove
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core

FIRST = 140
WEEKS = int(os.environ.get("YEAR_WEEKS", "52"))
ROUNDS = 7
"""Of a changed, a missing and a doubled row, each week: 1,092 places in a year."""

KINDS = {"changed": (1, 1), "missing": (1, 0), "doubled": (0, 1)}
"""What a hand does, and how many rows are then only in the Full, and only in the register."""


@dataclass(frozen=True)
class Harm:
    """What a hand does to a current row."""

    kind: str
    table: Table
    row: tuple[object, ...]

    @property
    def key(self) -> str:
        return str(self.row[0])

    def do(self, register: duckdb.DuckDBPyConnection) -> None:
        name, columns = self.table.name, self.table.column_names
        same = " AND ".join(f"{column} IS NOT DISTINCT FROM ?" for column in columns)
        where = f"WHERE _is_current AND {same}"
        if self.kind == "missing":
            register.execute(f"DELETE FROM {name} {where}", self.row)
        elif self.kind == "doubled":
            register.execute(f"INSERT INTO {name} FROM {name} {where}", self.row)
        else:
            column = next(c.name for c in self.table.columns[::-1] if c.type == "VARCHAR")
            register.execute(
                f"UPDATE {name} SET {column} = concat({column}, ' by hand') {where}", self.row
            )


def chosen(core: Core, chance: random.Random) -> list[Harm]:
    """A changed, a missing and a doubled row, of three entities."""
    found: list[Harm] = []
    with core.read() as reader:
        while len(found) < len(KINDS):
            table = chance.choice(ALL_TABLES)
            ((rows,),) = reader.execute(f'SELECT count(*) FROM "current".{table.name}').fetchall()
            (row,) = reader.execute(
                f'FROM "current".{table.name} ORDER BY ALL LIMIT 1 OFFSET {chance.randrange(rows)}'
            ).fetchall()
            harm = Harm([*KINDS][len(found)], table, row[: len(table.column_names)])
            if harm.key not in {other.key for other in found}:
                found.append(harm)
    return found


@contextmanager
def by_hand(core: Core) -> Iterator[list[duckdb.DuckDBPyConnection]]:
    with (
        duckdb.connect(str(core.register_file)) as work,
        duckdb.connect(str(core.database)) as read,
    ):
        yield [work, read]


def compared(core: Core, number: int, full: Path) -> Verification:
    return prove(core.all_settings(), number, zip_file=full)


def check_found(result: Verification, harms: list[Harm]) -> None:
    """Each is named with its table and its key, and nothing else is."""
    for table in ALL_TABLES:
        drift = result.tables[table.name]
        mine = [harm for harm in harms if harm.table is table]
        expected = [sum(side) for side in zip(*(KINDS[harm.kind] for harm in mine), strict=True)]
        assert [drift.only_in_zip, drift.only_in_register] == (expected or [0, 0])
        keys = {row[0] for rows in drift.samples.values() for row in rows}
        assert keys == {harm.key for harm in mine}


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(7200)
def test_each_week_of_a_year_is_proven_and_all_that_a_hand_has_changed_is_found_and_repaired(
    tmp_path: Path,
) -> None:
    chance = random.Random(2027)
    sample = Sample(enterprises=50, seed=27, change_shares=(), default_share=0.1)
    core = Core(tmp_path / "data", batch_rows=10_000)
    core.import_zip(sample.write_full(tmp_path, FIRST))
    places = 0
    for week in range(WEEKS):
        for number in range(FIRST + 7 * week + 1, FIRST + 7 * week + 8):
            core.import_zip(sample.write_update(tmp_path, number))
        full = sample.write_full(tmp_path, number)
        assert compared(core, number, full).is_equal
        for _ in range(ROUNDS):
            harms = chosen(core, chance)
            with by_hand(core) as registers:
                for register in registers:
                    for harm in harms:
                        harm.do(register)
            check_found(compared(core, number, full), harms)
            core.repair(full)
            assert compared(core, number, full).is_equal
            with core.read() as reader:
                noted = reader.execute(
                    "SELECT table_name, key FROM correction WHERE extract_number = $1", [number]
                ).fetchall()
            assert set(noted) == {(harm.table.name, harm.key) for harm in harms}
            places += len(harms)
    print(f"{places} places, {7 * WEEKS} Updates")
    with core.read() as reader:
        last = FIRST + 7 * WEEKS
        (numbers,) = reader.execute(
            "SELECT count(DISTINCT extract_number) FROM correction"
        ).fetchall()
        assert numbers == (WEEKS,)
        for table in ALL_TABLES:
            true = sorted(map(str, sample.rows(table.name, last)))
            found = reader.execute(f'FROM "current".{table.name}').fetchall()
            assert sorted(str(row[: len(table.column_names)]) for row in found) == true
