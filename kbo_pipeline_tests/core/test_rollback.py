"""Rolling back: the register is what it was before the extract, and the extract can come again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.core.errors import NotReadyError, OrderError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES, TABLES
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.publish.publish import completed
from kbo_pipeline.read.published import content_hash, published_state_of
from kbo_pipeline_tests.support.core import READER, Core, ImportedOnce, publication_of
from kbo_pipeline_tests.support.history import (
    DELETES,
    FULL,
    NUMBERS,
    UPDATE,
    apply_some,
    rows_and_codes,
)
from kbo_pipeline_tests.support.zips import write_extract

LATER_FULL = ExtractKey(145, "full")


@pytest.fixture
def core(tmp_path: Path) -> Core:
    """A data directory in which the Full makes four batches."""
    return Core(tmp_path / "core", batch_rows=13)


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> dict[ExtractKey, Path]:
    """A Full, an Update that deletes and inserts, and a later Full that differs from both."""
    tmp_path = tmp_path_factory.mktemp("zips")
    return {
        FULL: write_extract(tmp_path, FULL, rows_and_codes(NUMBERS, "first")),
        UPDATE: write_extract(tmp_path, UPDATE, rows_and_codes(NUMBERS[2:6], "second"), DELETES),
        LATER_FULL: write_extract(tmp_path, LATER_FULL, rows_and_codes(NUMBERS[3:], "third")),
    }


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, zips: dict[ExtractKey, Path]) -> ImportedOnce:
    return ImportedOnce(tmp_path_factory.mktemp("imported"), zips)


def at_work(core: Core) -> str:
    """The hash of what the register at work holds."""
    with core.at_work() as connection:
        return content_hash(connection)


def jobs(core: Core) -> dict[str, str]:
    """The status of each extract, as readers see it."""
    with core.read() as reader:
        return dict(reader.execute("SELECT id, status FROM import_jobs").fetchall())


@pytest.mark.parametrize("before", [[], [FULL], [FULL, UPDATE]], ids=len)
@pytest.mark.parametrize("batches", [slice(0, 0), slice(1, 3), slice(None), None], ids=str)
def test_the_register_is_what_it_was_before_and_the_extract_can_come_again(
    core: Core,
    once: ImportedOnce,
    zips: dict[ExtractKey, Path],
    before: list[ExtractKey],
    batches: slice | None,
) -> None:
    key = [FULL, UPDATE, LATER_FULL][len(before)]
    if batches is None:
        *hashes, after = once.into(core, *before, key)
        assert after not in hashes
    else:
        hashes = once.into(core, *before)
        apply_some(core, zips[key], batches)

    done = core.rollback(key)
    assert not done.already_rolled_back
    assert jobs(core) == {**{str(k): "completed" for k in before}, str(key): "rolled_back"}
    assert core.content_hash() == at_work(core)
    if before:
        assert core.content_hash() == hashes[-1]
    else:
        with core.read() as reader:
            for table in ALL_TABLES:
                assert reader.execute(f"FROM main.{table.name}").fetchall() == []
    with core.read() as reader:
        left = reader.execute("SELECT DISTINCT job_id FROM import_job_batches").fetchall()
    assert {job for (job,) in left} == {str(earlier) for earlier in before}
    assert list(core.staging_dir.glob("*")) == []

    again = core.import_zip(zips[key])
    assert not again.already_published
    assert set(jobs(core).values()) == {"completed"}
    if batches is None:
        assert core.content_hash() == after


def test_what_it_did_is_counted(core: Core, once: ImportedOnce) -> None:
    once.into(core, FULL, UPDATE)
    done = core.rollback(UPDATE)
    with core.read() as reader:
        for table in TABLES:
            row = reader.execute(f"SELECT count(*) FROM {table.name}_at(140)").fetchone()
            assert row == (len(NUMBERS),)
    # The Update deletes four rows and brings four; of the unique keys one more is replaced.
    for table in TABLES:
        assert done.dropped[table.name] == 4
        assert done.reopened[table.name] == (5 if table.unique_key else 4)
    assert (done.dropped["code"], done.reopened["code"]) == (1, 1)


def test_twice_does_nothing_the_second_time(core: Core, once: ImportedOnce) -> None:
    once.into(core, FULL, UPDATE)
    core.rollback(UPDATE)
    before = publication_of(core.readers)
    assert core.rollback(UPDATE).already_rolled_back
    assert publication_of(core.readers) == before


def test_any_other_extract_is_refused_with_the_reason(
    core: Core, zips: dict[ExtractKey, Path]
) -> None:
    with pytest.raises(OrderError, match="the register is empty; there is nothing to roll back"):
        core.rollback(FULL)
    core.import_zip(zips[FULL])
    core.import_zip(zips[UPDATE])
    before = core.content_hash(), jobs(core)
    newest = "only the newest extract can be rolled back: 0141-update, which is published;"
    with pytest.raises(OrderError, match=newest):
        core.rollback(FULL)
    with pytest.raises(OrderError, match="0145-full: it is not in the register; the newest"):
        core.rollback(LATER_FULL)
    apply_some(core, zips[LATER_FULL], slice(0, 1))
    with pytest.raises(OrderError, match=r"0145-full, which is half applied; kbo rollback 0145"):
        core.rollback(UPDATE)
    core.rollback(LATER_FULL)
    assert (core.content_hash(), jobs(core)) == (
        before[0],
        before[1] | {"0145-full": "rolled_back"},
    )


def test_one_after_the_other_down_to_an_empty_register(
    core: Core, once: ImportedOnce, zips: dict[ExtractKey, Path]
) -> None:
    hashes = dict(zip(zips, once.into(core, *zips), strict=True))
    core.rollback(LATER_FULL)
    assert core.content_hash() == hashes[UPDATE]
    core.rollback(UPDATE)
    assert core.content_hash() == hashes[FULL]
    core.rollback(FULL)
    assert set(jobs(core).values()) == {"rolled_back"}
    with duckdb.connect() as connection:
        standing = published_state_of(core.readers, connection)
    assert (standing.newest, standing.rolled_back) == (None, frozenset(zips))
    for key, zip_file in zips.items():
        core.import_zip(zip_file)
        assert core.content_hash() == hashes[key]


def test_another_zip_under_the_same_key_may_come_after(
    core: Core, once: ImportedOnce, zips: dict[ExtractKey, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = write_extract(folder, UPDATE, rows_and_codes(NUMBERS[:3], "other"))
    once.into(core, FULL, UPDATE)
    core.rollback(UPDATE)
    with duckdb.connect() as connection:
        assert not published_state_of(core.readers, connection).has(read_extract(other))
    core.import_zip(other)
    straight = Core(tmp_path / "straight")
    straight.import_zip(zips[FULL])
    straight.import_zip(other)
    assert core.content_hash() == straight.content_hash()


def test_a_rolled_back_extract_counts_as_not_applied_anywhere(
    core: Core, once: ImportedOnce, zips: dict[ExtractKey, Path]
) -> None:
    once.into(core, FULL, UPDATE)
    core.rollback(UPDATE)
    core.stage(zips[UPDATE])
    with pytest.raises(NotReadyError, match="are not applied"):
        core.publish(UPDATE)
    with core.applying(UPDATE) as (register, staged):
        assert register.ledger.half_applied() == UPDATE
        assert completed(register, UPDATE) is None
        assert register.ledger.missing_batches(UPDATE) == len(staged.batches)
        assert register.ledger.applied_change(UPDATE, 1) is None


CRASH = """
import sys
from pathlib import Path
import duckdb
from kbo_pipeline.publish import publish as publishing
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline_tests.support.core import Core, publication_of
publishing._show = lambda *_: __import__("os")._exit(9)
Core(Path(sys.argv[1])).rollback(ExtractKey(141, "update"))
"""


@pytest.mark.file_only("in a lake readers see it in the same commit")
@pytest.mark.parametrize("healed_by", ["the command", "a publication"])
def test_a_crash_before_readers_see_it_is_healed(
    core: Core, once: ImportedOnce, healed_by: str
) -> None:
    before, after = once.into(core, FULL, UPDATE)
    done = subprocess.run([sys.executable, "-c", CRASH, str(core.directory)], check=False)
    assert done.returncode == 9
    assert (core.content_hash(), at_work(core)) == (after, before)
    if healed_by == "the command":
        assert core.rollback(UPDATE).already_rolled_back
        assert core.content_hash() == before
    else:
        core.publish(FULL)
        assert core.content_hash() == before


def kept(core: Core) -> list[str]:
    return sorted(file.name for file in (core.directory / "work" / "published").glob("*"))


@pytest.mark.file_only("a lake keeps no published files")
def test_the_newest_published_files_are_kept(core: Core, zips: dict[ExtractKey, Path]) -> None:
    core.keep_published = 2
    core.import_zip(zips[FULL])
    assert kept(core) == []
    first, inode = core.content_hash(), core.database.stat().st_ino
    core.import_zip(zips[UPDATE])
    (file,) = (core.directory / "work" / "published").glob("*")
    assert (file.name, file.stat().st_ino) == ("0140-full.duckdb", inode)
    with duckdb.connect(str(file), read_only=True) as connection:
        assert content_hash(connection) == first
    core.import_zip(zips[LATER_FULL])
    assert kept(core) == ["0141-update.duckdb"]
    core.rollback(LATER_FULL)
    assert kept(core) == []  # readers have that one again
    core.import_zip(zips[LATER_FULL])
    assert kept(core) == ["0141-update.duckdb"]
    core.keep_published = 1
    core.rollback(LATER_FULL)
    core.import_zip(zips[LATER_FULL])
    assert kept(core) == []


@pytest.mark.file_only("a lake keeps no published files")
def test_what_was_rolled_back_is_not_kept(
    core: Core, once: ImportedOnce, zips: dict[ExtractKey, Path]
) -> None:
    core.keep_published = 3
    once.into(core, *zips)
    assert kept(core) == ["0140-full.duckdb", "0141-update.duckdb"]
    core.rollback(LATER_FULL)
    assert kept(core) == ["0140-full.duckdb"]
    core.rollback(UPDATE)
    core.rollback(FULL)
    assert kept(core) == []


@pytest.mark.file_only("a lake keeps no published files")
def test_without_hard_links_published_files_are_copied(
    core: Core, zips: dict[ExtractKey, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("kbo_pipeline.core.files.os.link", refuse)
    core.import_zip(zips[FULL])
    before = core.content_hash()
    core.import_zip(zips[UPDATE])
    assert kept(core) == ["0140-full.duckdb"]
    file = core.directory / "work" / "published" / "0140-full.duckdb"
    with duckdb.connect(str(file), read_only=True) as connection:
        assert content_hash(connection) == before


def test_readers_see_the_one_state_or_the_other_and_no_error(
    core: Core, once: ImportedOnce, zips: dict[ExtractKey, Path]
) -> None:
    (before,) = once.into(core, FULL)
    process = subprocess.Popen(
        [sys.executable, "-c", READER],
        env={**os.environ, **core.settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for _ in range(5):
        core.import_zip(zips[UPDATE])
        after = core.content_hash()
        core.rollback(UPDATE)
    out, errors = process.communicate("stop\n", timeout=60)
    assert (process.returncode, errors) == (0, "")
    last = out.splitlines()[-1]
    assert {tuple(pair) for pair in json.loads(last)} <= {(False, before), (True, after)}
