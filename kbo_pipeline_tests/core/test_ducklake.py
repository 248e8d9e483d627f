"""A register in a DuckLake: what a file holds, for many at once, and copies that are equal."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.core.errors import (
    NotFoundError,
    NotReadyError,
    RegisterError,
    SettingsError,
    StorageError,
)
from kbo_pipeline.core.extracts import read_ledger_entries
from kbo_pipeline.core.lake import compact, load_extension
from kbo_pipeline.core.places import DuckDBFile, Lake, Place
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.operate.processes.postgres import server_pid
from kbo_pipeline.publish.copy import copy_register
from kbo_pipeline.read.published import content_hash, open_published
from kbo_pipeline.read.register import read_register
from kbo_pipeline_tests.support.core import Core, current_rows, open_to_read
from kbo_pipeline_tests.support.history import (
    DELETES,
    FIRST,
    FULL,
    SECOND,
    UPDATE,
)
from kbo_pipeline_tests.support.lakes import new_lake, server_directory
from kbo_pipeline_tests.support.zips import write_extract

SECRET = "canary &'$"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return new_lake(tmp_path / "lake")


def contents(place: Place) -> tuple[str, object]:
    """The hash of all row versions, and the chain of the ledger."""
    with duckdb.connect(":memory:") as connection, open_published(connection, place):
        return content_hash(connection), read_ledger_entries(connection)


def test_where_nothing_is_there_is_nothing_to_read(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with duckdb.connect(":memory:") as connection, pytest.raises(NotReadyError, match="nothing is"):
        lake.attach_to_read(connection, "published")
    monkeypatch.setenv("KBO_DATABASE", lake.address)
    monkeypatch.setenv("KBO_DATABASE_FILES", lake.files)
    with pytest.raises(NotFoundError, match="nothing is published yet"):
        read_register()


def test_a_server_that_does_not_answer_is_named_and_its_password_is_not(tmp_path: Path) -> None:
    nowhere = Lake((("dbname", "kbo"), ("host", str(tmp_path))), SECRET, f"{tmp_path}/", "")
    with duckdb.connect(":memory:") as connection, pytest.raises(StorageError) as raised:
        nowhere.attach_to_write(connection, "register")
    assert f"host={tmp_path}" in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.long
def test_a_catalog_that_lives_and_does_not_answer_is_given_up(lake: Lake) -> None:
    pid = server_pid(server_directory())
    assert pid is not None
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        with duckdb.connect(":memory:") as connection, pytest.raises(StorageError) as raised:
            lake.attach_to_read(connection, "published")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "does not answer" in str(raised.value)
    assert 9 < time.monotonic() - began < 60


def test_an_extension_that_is_not_installed_is_named_and_not_downloaded() -> None:
    with (
        duckdb.connect(":memory:", config={"extension_directory": "/nonexistent"}) as connection,
        pytest.raises(StorageError, match=r"pip install duckdb-extension-spatial==") as raised,
    ):
        load_extension(connection, "spatial")
    assert "http" not in str(raised.value)


def test_a_password_is_nowhere_in_what_a_connection_shows(lake: Lake) -> None:
    with duckdb.connect(":memory:") as connection:
        Lake(lake.catalog, SECRET, lake.files, "").attach_to_write(connection, "register")
        shown = connection.execute("FROM duckdb_databases()").fetchall()
        shown += connection.execute("FROM duckdb_secrets()").fetchall()
    assert "register" in str(shown)
    assert SECRET not in str(shown)


def test_other_files_than_those_of_the_lake_are_refused(lake: Lake, tmp_path: Path) -> None:
    with duckdb.connect(":memory:") as connection:
        lake.attach_to_write(connection, "register")
    other = Lake(lake.catalog, None, f"{tmp_path}/other/", lake.address)
    with (
        duckdb.connect(":memory:") as connection,
        pytest.raises(SettingsError, match="KBO_DATABASE_FILES: not the files"),
    ):
        other.attach_to_read(connection, "published")


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(900)
def test_a_lake_holds_what_a_file_holds_and_shows_what_is_published(
    lake: Lake, tmp_path: Path
) -> None:
    full, update = (
        write_extract(tmp_path, FULL, FIRST),
        write_extract(tmp_path, UPDATE, SECOND, DELETES),
    )
    file = Core(tmp_path / "file", batch_rows=13)
    core = Core(tmp_path / "core", batch_rows=13, shared=lake)
    file.import_zip(full)
    core.import_zip(full)
    before = contents(lake)
    assert before == contents(file.readers)
    core.stage(update)
    with (
        open_to_read(lake) as reader,
        core.applying(UPDATE) as (register, staged),
    ):
        rows = {table: current_rows(reader, table) for table in TABLES}
        for batch in staged.batches:
            register.apply(staged, batch)
            assert contents(lake) == before
            assert register.apply(staged, batch).already_applied
        for table in TABLES:
            assert current_rows(reader, table) == rows[table]
            ((count,),) = reader.execute(f"SELECT count(*) FROM {table.name}_at(999)").fetchall()
            assert count == len(rows[table])
            assert not reader.execute(f"FROM {table.name}_changes(141)").fetchall()
    core.publish(UPDATE)
    file.import_zip(update)
    assert contents(lake) == contents(file.readers)
    core.rollback(UPDATE)
    assert contents(lake) == before


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(900)
def test_a_copy_of_a_copy_is_equal_and_goes_on(lake: Lake, tmp_path: Path) -> None:
    core = Core(tmp_path / "file", batch_rows=10_000)
    core.import_zip(write_extract(tmp_path, FULL, FIRST))
    core.import_zip(write_extract(tmp_path, UPDATE, SECOND, DELETES))
    back = tmp_path / "back.duckdb"
    pairs: list[tuple[Place, Place]] = [(core.readers, lake), (lake, DuckDBFile(back))]
    for source, target in pairs:
        with duckdb.connect(":memory:") as connection:
            found = copy_register(connection, source, target, privacy="full")
        assert found == core.content_hash()
        with duckdb.connect(":memory:") as connection, pytest.raises(RegisterError):
            copy_register(connection, source, target, privacy="full")
        assert contents(target) == contents(core.readers)
    with core.read() as one, duckdb.connect(str(back), read_only=True) as other:
        for table in TABLES:
            assert current_rows(one, table) == current_rows(other, table)
    assert sorted(path.name for path in tmp_path.iterdir() if "back" in path.name) == [back.name]
    before = contents(lake)
    with duckdb.connect(":memory:") as connection:
        done = compact(connection, lake, keep_days=0)
    assert done.counts["snapshots_expired"] > 0
    left = [file for file in Path(lake.files).rglob("*.parquet") if "-delete" not in file.name]
    assert 0 < done.files <= len(left)
    assert contents(lake) == before
    on = Core(tmp_path / "on", batch_rows=10_000, shared=lake)
    assert on.rollback(UPDATE).reopened == core.rollback(UPDATE).reopened
    assert contents(lake) == contents(core.readers)


WRITER = """
import sys
from pathlib import Path
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.places import lake_files, shared_place
from kbo_pipeline_tests.support.core import Core

directory, address, files, key, order = sys.argv[1:]
lake = shared_place("KBO_DATABASE", address, lake_files(files, Path(files)))
core = Core(Path(directory), batch_rows=13, shared=lake)
with core.applying(ExtractKey.parse(key)) as (register, staged):
    for batch in staged.batches if order == "up" else reversed(staged.batches):
        change = register.apply(staged, batch)
        print(batch.number, change.already_applied, flush=True)
"""


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(900)
def test_writers_who_apply_the_same_batches_apply_each_once(lake: Lake, tmp_path: Path) -> None:
    full = write_extract(tmp_path, FULL, FIRST)
    core = Core(tmp_path / "core", batch_rows=13, shared=lake)
    file = Core(tmp_path / "file", batch_rows=13)
    file.import_zip(full)
    batches = [batch.number for batch in core.stage(full).batches]

    def work(order: str) -> list[str]:
        arguments = [str(core.directory), lake.address, lake.files, str(FULL), order]
        done = subprocess.run(
            [sys.executable, "-c", WRITER, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with ThreadPoolExecutor() as pool:
        said = [line for lines in pool.map(work, ("up", "up", "down")) for line in lines]
    applied = sorted(int(line.split()[0]) for line in said if line.endswith("False"))
    assert applied == batches
    core.publish(FULL)
    assert contents(lake) == contents(file.readers)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_of_two_transactions_at_a_time_one_commits(lake: Lake, tmp_path: Path) -> None:
    core = Core(tmp_path / "core", batch_rows=13, shared=lake)
    core.stage(write_extract(tmp_path, FULL, FIRST))
    with core.applying(FULL) as (one, staged), core.applying(FULL) as (other, same):
        first, second, *_ = staged.batches
        with pytest.raises(duckdb.TransactionException), one.database.transaction():
            one._apply(staged, first, 1)
            assert not other.apply(same, second).already_applied
        assert not one.apply(staged, first).already_applied
        assert one.apply(staged, second).already_applied
        assert other.apply(same, first).already_applied
        rows = "SELECT count(*) FROM import_job_batches WHERE status = 'completed'"
        assert one.database.count(rows) == 2 * 7 * len(FULL.operations)


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(900)
def test_a_writer_that_is_killed_leaves_whole_batches_that_readers_do_not_see(
    lake: Lake, tmp_path: Path
) -> None:
    file = Core(tmp_path / "file", batch_rows=13)
    core = Core(tmp_path / "core", batch_rows=13, shared=lake)
    full = write_extract(tmp_path, FULL, FIRST)
    file.import_zip(full)
    core.import_zip(full)
    before = contents(lake)
    update = write_extract(tmp_path, UPDATE, SECOND, DELETES)
    core.stage(update)
    arguments = [str(core.directory), lake.address, lake.files, str(UPDATE), "up"]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "1 False\n"
    writer.kill()
    writer.communicate()
    assert contents(lake) == before
    assert core.rollback(UPDATE).dropped
    assert contents(lake)[0] == before[0]
    core.stage(update)
    with core.applying(UPDATE) as (register, staged):
        assert not register.apply(staged, staged.batches[0]).already_applied
    with core.applying(UPDATE) as (register, staged):
        assert [register.apply(staged, batch).already_applied for batch in staged.batches] == [
            number == 0 for number in range(len(staged.batches))
        ]
    assert contents(lake)[0] == before[0]
    core.publish(UPDATE)
    file.import_zip(update)
    assert contents(lake) == contents(file.readers)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_batch_that_cannot_be_applied_fails_and_the_others_go_on(
    lake: Lake, tmp_path: Path
) -> None:
    core = Core(tmp_path / "core", batch_rows=13, shared=lake)
    core.stage(write_extract(tmp_path, FULL, FIRST))
    with duckdb.connect(str(core.staging_dir / f"{FULL}.duckdb")) as staging:
        staging.execute("DELETE FROM address WHERE rowid = 0")
    with core.applying(FULL) as (register, staged):
        failed = []
        for batch in staged.batches:
            try:
                register.apply(staged, batch)
            except RegisterError as error:
                assert "kbo retry 0140-full stages it again" in str(error)
                failed.append(batch)
                register.ledger.fail(staged, batch, 1, str(error))
        assert len(failed) == 1
        assert register.ledger.missing_batches(FULL) == 1
        assert register.ledger.job_status(FULL) == "failed"


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(900)
@pytest.mark.parametrize("turns", [1, 16])
def test_a_lake_of_an_earlier_version_goes_on(lake: Lake, tmp_path: Path, turns: int) -> None:
    """It had one table, and nothing noted; then sixteen."""
    core = Core(tmp_path / "core", batch_rows=10_000, shared=lake)
    core.import_zip(write_extract(tmp_path, FULL, FIRST))
    before = core.content_hash()
    with duckdb.connect(":memory:") as connection:
        lake.attach_to_write(connection, "register")
        connection.execute("USE register.work")
        connection.execute("DROP TABLE import_turn_15")
        names = ["import_turn"] if turns == 1 else [f"import_turn_{n:02d}" for n in range(turns)]
        for name in names:
            connection.execute(f"CREATE TABLE {name} AS SELECT 0::BIGINT AS number")
        if turns == 1:
            connection.execute("DROP TABLE closing")
    core.import_zip(write_extract(tmp_path, UPDATE, SECOND, DELETES))
    core.rollback(UPDATE)
    assert core.content_hash() == before
    with duckdb.connect(":memory:") as connection:
        lake.attach_to_write(connection, "register")
        connection.execute("USE register.work")
        left = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'import_turn%'"
        ).fetchall()
        assert left == [("import_turn_15",)]
        with pytest.raises(duckdb.CatalogException):  # a writer of that version ends with it
            connection.execute(f"UPDATE {names[0]} SET number = number + 1")
