"""Repairing: what a hand has changed is closed by the Full of the newest number, and by no less."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.apply.register import open_register_to_write
from kbo_pipeline.core.errors import NotFoundError, NotReadyError, OrderError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES, Table
from kbo_pipeline.operate.repair.witness import Recorded
from kbo_pipeline.publish.correction import check_repair, repair_status
from kbo_pipeline.publish.verification import Verification, prove
from kbo_pipeline.read.changes import CORRECTED, count_changes, iterate_changes
from kbo_pipeline.read.export import write_export
from kbo_pipeline.read.published import hash_of_state, published_state_of, read_proofs
from kbo_pipeline_tests.support.core import Core, ImportedOnce, current_rows, rows_of
from kbo_pipeline_tests.support.feed import Reader, Rows, rows_as_texts
from kbo_pipeline_tests.support.zips import Row, as_number, keys_for, rows_for, write_extract

FIRST, SECOND, NEWEST = (
    ExtractKey(140, "full"),
    ExtractKey(141, "update"),
    ExtractKey(142, "update"),
)
FULL = ExtractKey(142, "full")
NUMBERS = [f"0200.000.{n:03d}" for n in range(18)]
OLDS, GONE, SECONDS, NEWS = NUMBERS[:7], NUMBERS[7], NUMBERS[8:10], NUMBERS[10:17]
"""Entities whose rows are of 140 and hold; were closed by 142; are of 141; are of 142."""
OLD, NEW = OLDS[0], NEWS[0]
BATCH_ROWS = 40


def codes(*categories: str) -> list[Row]:
    return [(category, "1", "NL", f"what {category} is") for category in categories]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> ImportedOnce:
    """A Full and two Updates, and the Full of the second."""
    directory = tmp_path_factory.mktemp("zips")
    first = rows_for(NUMBERS[:10], "first") | {"code": codes(*OLDS, GONE)}
    second = rows_for(SECONDS, "second") | {"code": codes(*OLDS, GONE)}
    third = rows_for(NUMBERS[10:], "third") | {"code": codes(*OLDS, *NEWS)}
    zips = {
        FIRST: write_extract(directory, FIRST, first),
        SECOND: write_extract(directory, SECOND, second, keys_for(SECONDS)),
        NEWEST: write_extract(directory, NEWEST, third, keys_for([GONE])),
    }
    imported = ImportedOnce(directory / "imported", zips)
    core = Core(directory / "right", batch_rows=BATCH_ROWS)
    imported.into(core, *zips)
    with core.read() as reader:
        rows = {table.name: current_rows(reader, table) for table in ALL_TABLES}
    zips[FULL] = write_extract(directory, FULL, rows)
    return imported


@pytest.fixture
def core(tmp_path: Path, imported: ImportedOnce) -> Core:
    """A register at 142."""
    core = Core(tmp_path / "data", batch_rows=BATCH_ROWS)
    imported.into(core, FIRST, SECOND, NEWEST)
    return core


@pytest.fixture(scope="module")
def full(imported: ImportedOnce) -> Path:
    return imported.zips[FULL]


@contextmanager
def opened(core: Core) -> Iterator[list[duckdb.DuckDBPyConnection]]:
    """The register at work, and the file of readers, to be written by hand."""
    with (
        duckdb.connect(":memory:") as connection,
        open_register_to_write(connection, core.register),
    ):
        if core.shared is not None:
            yield [connection]
            return
        with duckdb.connect(str(core.database)) as published:
            yield [connection, published]


def key_of(table: Table, number: str) -> str:
    return number if table is CODE else as_number(table.columns[0], number)


def damage(core: Core, statement: Callable[[Table], str], number: str) -> set[tuple[str, str]]:
    """Executes a statement on all tables by hand; the keys that it is about."""
    with opened(core) as connections:
        for connection in connections:
            for table in ALL_TABLES:
                connection.execute(statement(table), {"key": key_of(table, number)})
    return {(table.name, key_of(table, number)) for table in ALL_TABLES}


def proven(core: Core, full: Path) -> Verification:
    return prove(core.all_settings(), FULL.number, zip_file=full)


def corrections(core: Core) -> set[tuple[str, str]]:
    with core.read() as reader:
        rows = reader.execute(
            "SELECT table_name, key FROM correction WHERE extract_number = 142"
        ).fetchall()
    return {(str(table), str(key)) for table, key in rows}


def jobs(core: Core) -> dict[str, str]:
    with core.read() as reader:
        return dict(reader.execute("SELECT id, status FROM import_jobs").fetchall())


def contents(core: Core) -> dict[str, list[Row]]:
    """What readers see now and at each number."""
    with core.read() as reader:
        return {
            source: rows_of(reader, table, source)
            for table in ALL_TABLES
            for source in (f"current.{table.name}", *(f"{table.name}_at({n})" for n in (141, 142)))
        }


def text_column(table: Table) -> str:
    return [c.name for c in table.columns if c.type == "VARCHAR"][-1]


CURRENT = "{t.key} = $key AND _is_current"
STATEMENTS = {
    "a value changed": lambda t: (
        f"UPDATE {t.name} SET {text_column(t)} = 'by hand' WHERE {CURRENT.format(t=t)}"
    ),
    "deleted": lambda t: f"DELETE FROM {t.name} WHERE {CURRENT.format(t=t)}",
    "doubled": lambda t: f"INSERT INTO {t.name} SELECT * FROM {t.name} WHERE {CURRENT.format(t=t)}",
    "closed": lambda t: (
        f"UPDATE {t.name} SET _is_current = false, _deleted_at_extract = 141"
        f" WHERE {CURRENT.format(t=t)}"
    ),
    "closed later": lambda t: (
        f"UPDATE {t.name} SET _is_current = false, _deleted_at_extract = 999"
        f" WHERE {CURRENT.format(t=t)}"
    ),
    "not current": lambda t: f"UPDATE {t.name} SET _is_current = false WHERE {CURRENT.format(t=t)}",
    "closed and current": lambda t: (
        f"UPDATE {t.name} SET _deleted_at_extract = 141 WHERE {CURRENT.format(t=t)}"
    ),
}
ONLY_IN_A_FILE = {"closed later", "not current", "closed and current"}
"""In a lake, readers see these marks as they should be."""


@pytest.mark.parametrize("numbers", [OLDS, NEWS], ids=["opened long ago", "opened by the newest"])
def test_what_a_hand_has_changed_is_closed(core: Core, full: Path, numbers: list[str]) -> None:
    """In each table one row in each way, of an entity of its own."""
    right = contents(core)
    keys: set[tuple[str, str]] = set()
    for number, (kind, statement) in zip(numbers, STATEMENTS.items(), strict=True):
        if core.shared is None or kind not in ONLY_IN_A_FILE:
            keys |= damage(core, statement, number)
    assert not proven(core, full).is_equal
    assert check_repair(core.all_settings(), FULL) == NEWEST

    begun = core.repair(full)
    assert (begun.keys, begun.already_begun) == (len(keys), False)
    assert corrections(core) == keys
    assert jobs(core)[str(FULL)] == "completed"
    assert jobs(core)[str(NEWEST)] == "rolled_back"
    assert [result for result in core.checks if result.blocks] == []
    after = contents(core)
    for table in ALL_TABLES:
        for source in (f"current.{table.name}", f"{table.name}_at(142)"):
            assert after[source] == right[source]
    assert read_proofs(core.all_settings()) == {}  # that was about something else
    assert proven(core, full).is_equal


def test_a_rollback_of_the_repair_leads_to_the_state_before_and_on_from_there(
    core: Core, imported: ImportedOnce
) -> None:
    right = contents(core)
    for number in (OLD, NEW):
        damage(core, STATEMENTS["doubled"], number)
    core.repair(imported.zips[FULL])
    core.rollback(FULL)
    assert published_state_of(core.readers).newest == SECOND
    assert corrections(core) == set()
    assert {jobs(core)[str(key)] for key in (FULL, NEWEST)} == {"rolled_back"}
    core.import_zip(imported.zips[NEWEST])
    assert contents(core) == right  # what was there twice is not there twice again


def test_a_row_that_was_ended_and_a_row_that_is_nobodys(core: Core, full: Path) -> None:
    right = contents(core)
    damage(
        core,
        lambda t: (
            f"UPDATE {t.name} SET _is_current = true, _deleted_at_extract = NULL"
            f" WHERE {t.key} = $key"
        ),
        GONE,
    )
    damage(
        core,
        lambda t: (
            f"INSERT INTO {t.name} BY NAME SELECT * REPLACE ('0999.999.999' AS {t.key})"
            f" FROM {t.name} WHERE {CURRENT.format(t=t)}"
        ),
        OLD,
    )
    assert not proven(core, full).is_equal
    core.repair(full)
    assert proven(core, full).is_equal
    for table in ALL_TABLES:
        source = f"current.{table.name}"
        assert contents(core)[source] == right[source]


def test_versions_are_dated_with_the_number_and_others_stay(core: Core, full: Path) -> None:
    with core.read() as reader:
        query = "SELECT *, epoch(_snapshot_date) FROM contact WHERE _extract_number < 142"
        before = set(reader.execute(query).fetchall())
    damage(core, STATEMENTS["a value changed"], OLD)
    core.repair(full)
    with core.read() as reader:
        assert reader.execute(
            "SELECT value, _extract_number, _deleted_at_extract FROM contact"
            f" WHERE entity_number = '{OLD}' ORDER BY _extract_number"
        ).fetchall() == [("by hand", 140, 142), ("first value", 142, None)]
        left = set(reader.execute(query).fetchall())
    assert {row for row in left ^ before if row[0] != OLD} == set()


@pytest.mark.file_only("a lake has no other copy")
def test_where_only_the_copy_of_readers_was_changed_it_is_made_again(
    core: Core, full: Path
) -> None:
    right = core.content_hash()
    with duckdb.connect(str(core.database)) as published:
        published.execute("DELETE FROM enterprise WHERE _extract_number = 140")
    assert not proven(core, full).is_equal
    core.stage(full)
    assert core.begin_repair(FULL).keys == 0
    assert core.content_hash() == right
    assert proven(core, full).is_equal
    assert jobs(core)[str(NEWEST)] == "completed"


def test_the_first_full_and_a_full_once_more(core: Core, tmp_path: Path, full: Path) -> None:
    """A Full that takes the place of itself; also where nothing is before it."""
    first = Core(tmp_path / "first")
    first.import_zip(full)
    for kind, one in (("deleted", first), ("doubled", first)):
        with one.read_register() as register:
            cursor = register.cursor()
        damage(one, STATEMENTS[kind], OLD)
        assert not proven(one, full).is_equal
        assert check_repair(one.all_settings(), FULL) == FULL
        one.repair(full)
        assert proven(one, full).is_equal
        assert jobs(one) == {str(FULL): "completed"}
        with one.read_register() as register, pytest.raises(NotFoundError, match="read the reg"):
            list(register.changes_since(cursor))
    damage(core, STATEMENTS["deleted"], OLD)
    core.repair(full)
    with core.read_register() as register:
        cursor = register.cursor()
    damage(core, STATEMENTS["a value changed"], NEW)
    assert not proven(core, full).is_equal
    core.repair(full)
    assert proven(core, full).is_equal
    with core.read_register() as register:
        events = list(register.changes_since(cursor))
    assert events[0].kind == "rolled_back"
    assert {event.kind for event in events[1:] if event.entity_number == NEW} == {CORRECTED}


def state(core: Core, number: int) -> Rows:
    with core.read() as reader:
        return rows_as_texts({t.name: rows_of(reader, t, f"{t.name}_at({number})") for t in TABLES})


def test_the_feed_and_kbo_changes_say_what_was_corrected(core: Core, full: Path) -> None:
    for kind, number in (("a value changed", OLD), ("deleted", SECONDS[0]), ("deleted", NEW)):
        damage(core, STATEMENTS[kind], number)
    with core.read_register() as register:
        reader = Reader(state(core, 141), register.cursor("0141-update"))
        for event in register.changes_since(reader.cursor):
            reader.take(event)
        assert CORRECTED not in {event.kind for event in reader.kept}
    assert reader.rows == state(core, 142)

    proven(core, full)
    core.repair(full)
    with core.read_register() as register:
        events = list(register.changes_since(reader.cursor))
        only = list(register.changes_since("0141-update", kinds=[CORRECTED]))
    assert (events[0].kind, events[0].after) == ("rolled_back", {"extract": "0141-update"})
    for event in events:
        reader.take(event)
    assert reader.rows == state(core, 142)
    by_hand = {as_number(t.columns[0], n) for t in TABLES for n in (OLD, SECONDS[0], NEW)}
    assert {e.entity_number for e in events[1:] if e.kind == CORRECTED} == by_hand
    assert {e.kind for e in events[1:] if e.entity_number not in by_hand} >= {"new", "stopped"}
    assert [e.cursor for e in only] == [e.cursor for e in events[1:] if e.kind == CORRECTED]
    with core.read() as connection:
        counts = count_changes(connection, 142)
        changes = list(iterate_changes(connection, 142))
    for table in TABLES:
        assert counts[table.name, CORRECTED] == 3
    corrected = [(c.table, c.entity_number) for c in changes if c.kind == CORRECTED]
    assert len(corrected) == len({*corrected}) == 3 * len(TABLES)
    (contact,) = (c for c in changes if (c.table, c.entity_number) == ("contact", OLD))
    assert (contact.kind, contact.before, contact.after) == (
        CORRECTED,
        "first entity_contact first contact_type by hand",
        "first entity_contact first contact_type first value",
    )


def test_hashes_of_exports_follow_what_is_closed(
    core: Core, imported: ImportedOnce, full: Path, tmp_path: Path
) -> None:
    """Though they are derived from a state whose rows a hand has changed since."""

    def exported() -> str:
        return write_export(core.all_settings(), tmp_path / "export").state.content_hash

    with core.read() as reader:
        right = hash_of_state(reader, 142)
    core.rollback(NEWEST)
    exported()  # counts the rows of 141
    core.import_zip(imported.zips[NEWEST])
    damage(core, STATEMENTS["a value changed"], OLD)
    core.repair(full)
    assert exported() == right
    core.rollback(FULL)
    exported()
    damage(core, STATEMENTS["a value changed"], SECONDS[0])
    core.import_zip(full)  # which closes all of it without a repair
    assert exported() != right  # nobody has looked
    assert proven(core, full).is_equal
    assert exported() == right


def test_an_update_that_comes_again_corrects_nothing(core: Core, imported: ImportedOnce) -> None:
    damage(core, STATEMENTS["deleted"], NEW)
    core.stage(imported.zips[FULL])
    core.begin_repair(FULL)
    core.rollback(FULL)
    core.import_zip(imported.zips[NEWEST])
    assert corrections(core) == set()


def test_nothing_is_repaired_unasked_or_unproven(core: Core, full: Path, tmp_path: Path) -> None:
    settings = core.all_settings()
    empty = Core(tmp_path / "empty").all_settings() if core.shared is None else None
    if empty is not None:
        with pytest.raises(NotReadyError, match="nothing is published"):
            check_repair(empty, FULL)
    with pytest.raises(NotReadyError, match=r"0142-update: not compared with .*; kbo verify"):
        check_repair(settings, NEWEST)
    proven(core, full)
    with pytest.raises(NotReadyError, match=r"0142-update: equal to .*: nothing to repair"):
        check_repair(settings, NEWEST)
    for key in (SECOND, ExtractKey(143, "update")):
        with pytest.raises(OrderError, match=r"only the newest .* kbo verify .* kbo repair 0142-u"):
            check_repair(settings, key)


def test_a_half_applied_extract_comes_first(core: Core, full: Path, tmp_path: Path) -> None:
    damage(core, STATEMENTS["deleted"], OLD)
    core.stage(full)
    later = write_extract(tmp_path, ExtractKey(143, "update"), rows_for(NUMBERS[:2], "later"))
    key = core.stage(later).extract.key
    with core.applying(key) as (register, staged):
        register.apply(staged, staged.batches[0])
    with pytest.raises(OrderError, match="the newest extract is 0143-update; kbo retry 0143"):
        core.begin_repair(FULL)
    core.rollback(key)
    core.repair(full)
    assert proven(core, full).is_equal


def test_until_it_is_published_readers_of_a_file_keep_what_they_have(
    core: Core, full: Path
) -> None:
    damage(core, STATEMENTS["deleted"], OLD)
    wrong = core.content_hash()
    core.stage(full)
    assert not core.begin_repair(FULL).already_begun
    if core.shared is None:
        assert core.content_hash() == wrong
        assert core.mend(Recorded()).lines[0].endswith("recorded there")  # nothing of files
        assert core.content_hash() == wrong
    else:
        assert published_state_of(core.readers).newest == SECOND
    with duckdb.connect() as connection:
        assert repair_status(connection, core.all_settings(), FULL) == "processing"
    assert core.begin_repair(FULL).already_begun
    with core.applying(FULL) as (register, staged):
        for batch in staged.batches:
            register.apply(staged, batch)
    if core.shared is None:
        assert core.content_hash() == wrong
    core.publish(FULL)
    with duckdb.connect() as connection:
        assert repair_status(connection, core.all_settings(), FULL) == "completed"
    assert proven(core, full).is_equal


CRASH = """
import os, sys
from pathlib import Path
from kbo_pipeline.apply import register as applying
from kbo_pipeline.publish import correction, publish
from kbo_pipeline_tests.support.core import Core
where, place = sys.argv[2].rsplit(" ", 1)
owner, name = {"begin": (correction, "_begin"), "straight": (correction, "_straighten"),
    "begun": (applying.Register, "checkpoint"), "batch": (applying.Register, "apply"),
    "complete": (publish, "complete"), "show": (publish, "_show"),
    "shown": (publish, "discard_staged")}[where]
called = getattr(owner, name)
calls = 0
def die(*args, **named):
    global calls
    calls += 1
    if calls == int(place):
        os._exit(9)
    return called(*args, **named)
setattr(owner, name, die)
Core(Path(sys.argv[1])).repair(Path(sys.argv[3]))
"""


_PLACES = ("begin 1", "straight 5", "begun 1", "batch 2", "complete 1", "show 1", "shown 1")


@pytest.mark.parametrize(
    ("of", "place"),
    [*((NEWEST, place) for place in _PLACES), *((FULL, place) for place in _PLACES[2:6])],
)
def test_whoever_is_killed_in_between_does_it_again(
    core: Core, full: Path, of: ExtractKey, place: str
) -> None:
    if of == FULL:
        core.rollback(NEWEST)
        core.import_zip(full)
    right = contents(core)
    damage(core, STATEMENTS["a value changed"], OLD)
    wrong = core.content_hash()
    proven(core, full)
    command = [sys.executable, "-c", CRASH, str(core.directory), place, str(full)]
    assert subprocess.run(command, env={**os.environ, **core.settings}, check=False).returncode == 9
    if core.shared is None:
        assert (core.content_hash() == wrong) is (place != "shown 1")
    if place in ("show 1", "shown 1"):
        core.publish(FULL)
        assert read_proofs(core.all_settings()) == {}
    else:
        core.repair(full)
    assert proven(core, full).is_equal
    for table in ALL_TABLES:
        source = f"current.{table.name}"
        assert contents(core)[source] == right[source]
