"""How far the batches of a run are: the line of the log, the table, the time that is left."""

import pytest

from kbo_pipeline.apply.ledger import BatchChange, TableChange
from kbo_pipeline.apply.register import TALLY_COLUMNS, Tally
from kbo_pipeline.core.extracts import BatchKey
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.core.text import duration

KEY = BatchKey.parse("0140-full-0023")
NOTHING = TableChange(0, 0, 0, 0, 0, 0.0)


def change(*, already_applied: bool = False, **tables: tuple[int, int]) -> BatchChange:
    """What a batch did: closed and opened rows by table, half a second each."""
    changes = {table.name: NOTHING for table in TABLES}
    for name, (closed, opened) in tables.items():
        changes[name] = TableChange(closed + opened, closed, opened, 0, 0, 0.5)
    return BatchChange(changes, already_applied)


def test_a_line_names_the_largest_change_first_and_the_time_left() -> None:
    tally = Tally(50)
    for _ in range(22):
        tally.add(change())
    batch = change(activity=(957, 1012), enterprise=(0, 1), address=(2, 3))
    tally.add(batch)
    assert tally.line(KEY, batch, 144.0) == (
        "0140-full-0023, 23 of 50 (46 %): activity 957 closed, 1,012 opened;"
        " address 2 closed, 3 opened; enterprise 0 closed, 1 opened, about 2 min left"
    )


def test_the_last_line_says_nothing_of_time_left() -> None:
    tally = Tally(1)
    tally.add(change())
    assert tally.line(KEY, change(), 0.0) == "0140-full-0023, 1 of 1 (100 %): no change"
    assert tally.is_complete


def test_a_batch_that_was_applied_before_is_said_to_be() -> None:
    tally = Tally(10)
    done = change(already_applied=True, activity=(1, 1))
    for _ in range(8):
        tally.add(done)
    assert tally.line(KEY, done, 1.0) == "0140-full-0023, 8 of 10 (80 %): was applied before"


def test_a_failed_batch_has_its_place_and_is_not_done() -> None:
    tally = Tally(4)
    tally.add(change())
    tally.add_failed()
    assert (tally.place, tally.percent) == ("2 of 4", 25.0)
    tally.add(change())
    assert tally.line(KEY, change(), 4.0).startswith("0140-full-0023, 3 of 4 (50 %): no change")
    tally.add_failed()
    assert tally.is_complete


def test_the_table_counts_each_table_and_all() -> None:
    tally = Tally(4)
    tally.add(change(activity=(1, 2), contact=(3, 0)))
    tally.add(change(activity=(10, 20)))
    rows = {row[0]: dict(zip(TALLY_COLUMNS, row, strict=True)) for row in tally.rows()}
    assert list(rows) == [*(table.name for table in TABLES), "all"]
    assert {(row["batches"], row["of"], row["percent"]) for row in rows.values()} == {(2, 4, 50.0)}
    assert (rows["activity"]["rows_closed"], rows["activity"]["rows_opened"]) == (11, 22)
    assert (rows["all"]["rows_closed"], rows["all"]["rows_opened"]) == (14, 22)
    assert rows["all"]["seconds"] == 1.5


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (119, "2 min"), (5940, "99 min"), (6120, "1 h 42 min")],
)
def test_durations_are_said_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words
