"""What was lost outside our transactions: noticed, and made good where nothing is ambiguous."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.core.database import check_blocks
from kbo_pipeline.core.errors import DamagedError, RegisterError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.operate.repair.witness import Recorded, RepairPlan, newest_known
from kbo_pipeline.read.published import published_state_of
from kbo_pipeline_tests.support.core import Core, chain_of, flip, hash_of
from kbo_pipeline_tests.support.history import FULL, NUMBERS, UPDATE, apply_some, rows_and_codes
from kbo_pipeline_tests.support.zips import keys_for, write_extract

NEXT = ExtractKey(142, "update")


@dataclass
class World:
    """A data directory in which a Full and an Update are published, and ZIPs to go on with."""

    core: Core
    settings: Settings
    zips: dict[ExtractKey, Path]

    @property
    def work(self) -> Path:
        return self.core.register_file

    @property
    def published(self) -> Path:
        return self.core.database

    @property
    def older(self) -> Path:
        """The published file before the newest."""
        return self.core.directory / "work" / "published" / f"{FULL}.duckdb"

    @property
    def recorded(self) -> Recorded:
        """What Dagster knows when nothing was lost."""
        chain = chain_of(self.published)
        return Recorded({FULL: None, UPDATE: chain[-1].hash})

    def mend(self, recorded: Recorded) -> RepairPlan:
        return self.core.mend(recorded)

    def newest(self) -> ExtractKey | None:
        """The newest extract that readers have."""
        return published_state_of(DuckDBFile(self.published)).newest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[ExtractKey, Path]]:
    directory = tmp_path_factory.mktemp("made")
    deletes = keys_for(NUMBERS[1:5])
    zips = {
        FULL: write_extract(directory, FULL, rows_and_codes(NUMBERS, "first")),
        UPDATE: write_extract(directory, UPDATE, rows_and_codes(NUMBERS[2:6], "second"), deletes),
        NEXT: write_extract(directory, NEXT, rows_and_codes(NUMBERS[1:5], "third"), deletes),
    }
    core = Core(directory / "data", batch_rows=13)
    for key in (FULL, UPDATE):
        core.import_zip(zips[key])
    return core.directory, zips


@pytest.fixture
def world(made: tuple[Path, dict[ExtractKey, Path]], tmp_path: Path) -> World:
    shutil.copytree(made[0], tmp_path / "data")
    core = Core(tmp_path / "data", batch_rows=13)
    return World(core, load_settings({"KBO_DATA_DIR": str(core.directory)}, tmp_path), made[1])


def test_every_changed_bit_is_found(world: World) -> None:
    check_blocks(world.published)
    chance = random.Random(4)
    length = world.published.stat().st_size
    places = [*range(0, 12_288, 509), *(chance.randrange(length) for _ in range(40)), length - 1]
    for place in places:
        flip(world.published, place)
        with pytest.raises(DamagedError, match="checksum"):
            check_blocks(world.published)
        flip(world.published, place)
    check_blocks(world.published)


@pytest.mark.parametrize("length", [0, 7, 5000, 12_288 + 7, -1])
def test_a_file_that_ends_too_soon_is_found(world: World, length: int) -> None:
    size = world.published.stat().st_size
    os.truncate(world.published, length if length >= 0 else size + length)
    with pytest.raises(DamagedError):
        check_blocks(world.published)


def test_the_chain_tells_registers_apart_by_what_they_did_and_by_nothing_else(
    world: World, tmp_path: Path
) -> None:
    other = Core(tmp_path / "other", batch_rows=13)
    for key in (FULL, UPDATE):
        other.import_zip(world.zips[key], random.Random(8), twice=True)
    chain = chain_of(world.published)
    assert [link.key for link in chain] == [FULL, UPDATE]
    assert chain_of(other.database) == chain
    assert chain[0].batches == 4
    assert chain[0].records == len(NUMBERS) * len(TABLES)
    with duckdb.connect(str(other.database)) as connection:
        connection.execute(
            "DELETE FROM import_job_batches WHERE job_id = '0140-full' AND batch_number = 2"
            " AND table_name = 'branch'"
        )
    lost = chain_of(other.database)
    assert lost[0].hash != chain[0].hash
    assert lost[1].hash != chain[1].hash


def test_nothing_is_done_where_everything_agrees(world: World) -> None:
    before = world.work.stat().st_mtime_ns, world.published.stat().st_mtime_ns
    assert world.mend(world.recorded) == RepairPlan()
    assert (world.work.stat().st_mtime_ns, world.published.stat().st_mtime_ns) == before


def test_nothing_is_done_where_nothing_is(tmp_path: Path) -> None:
    core = Core(tmp_path / "data")
    assert core.mend(Recorded()) == RepairPlan()
    assert not core.register_file.exists()


def gone(file: Path, world: World) -> None:
    file.unlink()


def flipped(file: Path, world: World) -> None:
    flip(file, 300_000)


def cut(file: Path, world: World) -> None:
    os.truncate(file, 400_000)


def older(file: Path, world: World) -> None:
    shutil.copyfile(world.older, file)


def emptied(file: Path, world: World) -> None:
    file.write_bytes(b"")


HARMS = [gone, flipped, cut, older, emptied]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("which", ["work", "published"])
def test_one_file_is_made_good_from_the_other(
    world: World, which: str, harm: Callable[[Path, World], None]
) -> None:
    truth, recorded = hash_of(world.published), world.recorded
    harm(getattr(world, which), world)
    remedy = world.mend(recorded)
    assert remedy.lines
    assert remedy.lost == ()
    assert (hash_of(world.work), hash_of(world.published)) == (truth, truth)
    assert world.mend(recorded) == RepairPlan()
    aside = world.core.directory / "work" / "damaged" / getattr(world, which).name
    assert aside.exists() == (harm is not gone)
    world.core.import_zip(world.zips[NEXT])
    assert world.newest() == NEXT


@pytest.mark.parametrize("content", ["text", "another database"])
def test_a_file_of_somebody_else_is_not_replaced(world: World, content: str) -> None:
    recorded = world.recorded
    world.published.unlink()
    if content == "text":
        world.published.write_text("a letter to somebody")
    else:
        with duckdb.connect(str(world.published)) as connection:
            connection.execute("CREATE TABLE letters AS SELECT 1 AS one")
    before = world.published.read_bytes()
    with pytest.raises(RegisterError, match="move it away"):
        world.mend(recorded)
    assert world.published.read_bytes() == before


@pytest.mark.parametrize("harm", [gone, flipped, cut])
def test_half_applied_work_is_given_up_with_a_damaged_register_and_comes_again(
    world: World, harm: Callable[[Path, World], None]
) -> None:
    recorded = world.recorded
    apply_some(world.core, world.zips[NEXT], slice(0, 2))
    applied = Recorded(recorded.published, {NEXT: frozenset({1, 2})})
    assert world.mend(applied) == RepairPlan()
    harm(world.work, world)
    assert world.mend(applied).lost_batches == {NEXT: frozenset({1, 2})}
    apply_some(world.core, world.zips[NEXT], slice(None))
    world.core.publish(NEXT)
    assert world.newest() == NEXT


@pytest.mark.parametrize("harm", [gone, flipped, cut])
def test_readers_get_the_last_whole_extract_while_the_next_is_half_applied(
    world: World, harm: Callable[[Path, World], None]
) -> None:
    truth, recorded = hash_of(world.published), world.recorded
    apply_some(world.core, world.zips[NEXT], slice(0, 2))
    harm(world.published, world)
    remedy = world.mend(Recorded(recorded.published, {NEXT: frozenset({1, 2})}))
    assert remedy.undo == NEXT
    assert remedy.lost_batches == {NEXT: frozenset({1, 2})}
    assert hash_of(world.published) == truth
    apply_some(world.core, world.zips[NEXT], slice(None))
    world.core.publish(NEXT)
    assert world.newest() == NEXT


def test_a_lost_tail_of_the_log_is_noticed(world: World) -> None:
    apply_some(world.core, world.zips[NEXT], slice(0, 1))
    before = world.work.read_bytes()
    apply_some(world.core, world.zips[NEXT], slice(1, 3))
    world.work.write_bytes(before)
    recorded = Recorded(world.recorded.published, {NEXT: frozenset({1, 2, 3})})
    assert world.mend(recorded).lost_batches == {NEXT: frozenset({2, 3})}


def test_a_register_that_has_lost_a_published_extract_gets_it_back_from_the_published_file(
    world: World,
) -> None:
    truth, recorded = hash_of(world.published), world.recorded
    older(world.work, world)
    remedy = world.mend(recorded)
    assert "lost its newest extracts" in remedy.lines[0]
    assert remedy.forget == ()
    assert hash_of(world.work) == truth


@pytest.mark.parametrize("harm", [gone, flipped, cut])
def test_from_a_kept_file_when_both_are_damaged(
    world: World, harm: Callable[[Path, World], None]
) -> None:
    recorded, before = world.recorded, hash_of(world.older)
    harm(world.work, world)
    harm(world.published, world)
    remedy = world.mend(recorded)
    assert remedy.lost == remedy.forget == (UPDATE,)
    assert world.newest() == FULL
    assert hash_of(world.work) == hash_of(world.published) == before
    world.core.import_zip(world.zips[UPDATE])
    assert world.mend(recorded) == RepairPlan()


def test_nothing_is_changed_when_nothing_tells_what_was(world: World) -> None:
    recorded = world.recorded
    for file in (world.work, world.published, world.older):
        flip(file, 300_000)
    before = [file.read_bytes() for file in (world.work, world.published, world.older)]
    with pytest.raises(RegisterError, match="kbo rebuild --from-zips"):
        world.mend(recorded)
    assert [f.read_bytes() for f in (world.work, world.published, world.older)] == before


def test_registers_of_different_extracts_are_left_alone(world: World, tmp_path: Path) -> None:
    other = Core(tmp_path / "other")
    other.import_zip(write_extract(tmp_path, FULL, rows_and_codes(NUMBERS, "another")))
    shutil.copyfile(other.database, world.published)
    with pytest.raises(RegisterError, match="different extracts"):
        world.mend(world.recorded)
    assert hash_of(world.published) == hash_of(other.database)


def test_a_rollback_that_readers_have_not_seen_is_shown_to_them(world: World) -> None:
    recorded, shown = world.recorded, world.published.read_bytes()
    world.core.rollback(UPDATE)
    world.published.write_bytes(shown)
    remedy = world.mend(recorded)
    assert remedy.show
    assert remedy.forget == (UPDATE,)
    assert remedy.lost == ()  # a person did not want it
    assert world.newest() == FULL


def test_what_is_published_is_told_to_a_dagster_that_has_forgotten(world: World) -> None:
    remedy = world.mend(Recorded())
    assert [link.key for link in remedy.adopt] == [FULL, UPDATE]
    remedy = world.mend(Recorded({FULL: None}))
    assert [link.key for link in remedy.adopt] == [UPDATE]
    assert world.mend(Recorded({UPDATE: None})) == RepairPlan()  # the Full is too old to be kept


def test_another_ledger_than_dagster_knows_is_told_to_it(world: World) -> None:
    remedy = world.mend(Recorded({FULL: None, UPDATE: "f" * 64}))
    assert [link.key for link in remedy.adopt] == [UPDATE]
    assert "another ledger" in remedy.lines[0]


def test_an_extract_that_only_dagster_knows_is_lost(world: World) -> None:
    published = {**world.recorded.published, NEXT: None}
    remedy = world.mend(Recorded(published))
    assert remedy.lost == remedy.forget == (NEXT,)


def test_a_first_import_whose_register_is_damaged_begins_anew(world: World) -> None:
    shutil.rmtree(world.core.directory)
    apply_some(world.core, world.zips[FULL], slice(0, 2))
    flip(world.work, 300_000)
    remedy = world.mend(Recorded({}, {FULL: frozenset({1, 2})}))
    assert remedy.lost_batches == {FULL: frozenset({1, 2})}
    apply_some(world.core, world.zips[FULL], slice(None))
    world.core.publish(FULL)
    assert world.newest() == FULL


def test_an_empty_register_beside_a_dagster_that_knows_one_is_refused(world: World) -> None:
    recorded = world.recorded
    shutil.rmtree(world.core.directory)
    with pytest.raises(RegisterError, match="--from-zips"):
        world.mend(recorded)


def test_damage_is_not_handed_on_to_readers(world: World) -> None:
    truth = hash_of(world.published)
    apply_some(world.core, world.zips[NEXT], slice(None))
    with duckdb.connect(str(world.work)) as connection:
        connection.execute("FORCE CHECKPOINT")
    free = world.work.stat().st_size - 100  # in the last block, whatever is in it
    flip(world.work, free)
    with pytest.raises(DamagedError):
        world.core.publish(NEXT)
    assert hash_of(world.published) == truth


def test_who_is_at_work_is_not_disturbed(world: World) -> None:
    recorded = world.recorded
    world.published.unlink()
    with (
        exclusive_lock(DuckDBFile(world.work).lock),
        pytest.raises(StorageError, match=str(os.getpid())),
    ):
        world.mend(recorded)
    assert not world.published.exists()


def test_what_was_published_last_is_known_from_whatever_is_left(world: World) -> None:
    recorded = world.recorded
    assert newest_known(world.settings, Recorded()) == UPDATE
    world.work.unlink()
    flip(world.published, 300_000)
    assert newest_known(world.settings, recorded) == UPDATE
    assert newest_known(world.settings, Recorded()) is None
