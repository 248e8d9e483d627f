"""Several workers apply disjoint batches of an extract to a DuckLake, each batch once."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import duckdb
import psutil
import pytest

from kbo_pipeline.apply.lake_sql import TURNS
from kbo_pipeline.apply.ledger import BatchChange
from kbo_pipeline.apply.pool import ApplyPool, _spans
from kbo_pipeline.apply.register import Register, open_register
from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.extracts import Batch
from kbo_pipeline.core.lake import attach_to_write
from kbo_pipeline.core.places import Lake
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.history import (
    DELETES,
    FIRST,
    FULL,
    SECOND,
    UPDATE,
)
from kbo_pipeline_tests.support.lakes import new_lake
from kbo_pipeline_tests.support.zips import write_extract


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return new_lake(tmp_path / "lake")


def settings_of(core: Core, workers: int) -> Settings:
    """The settings of a pool that works on the register of a core."""
    assert isinstance(core.shared, Lake)
    environment = {
        "KBO_DATA_DIR": str(core.directory),
        "KBO_DATABASE": core.shared.address,
        "KBO_DATABASE_FILES": core.shared.files,
        "KBO_APPLY_WORKERS": str(workers),
    }
    return load_settings(environment, core.directory)


def test_spans_have_no_gap_and_no_more_batches_than_they_may() -> None:
    batches = [Batch(number, None, None) for number in (1, 2, 3, 4, 5, 8, 9, 12)]
    found = [[batch.number for batch in span] for span in _spans(batches[::-1], 4)]
    assert found == [[1, 2, 3, 4], [5], [8, 9], [12]]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_batches_with_other_turns_commit_at_once_and_the_same_one_does_not(
    lake: Lake, tmp_path: Path
) -> None:
    core = Core(tmp_path / "core", batch_rows=13, shared=lake)
    core.stage(write_extract(tmp_path, FULL, FIRST))
    with ExitStack() as stack:
        one, staged = stack.enter_context(core.applying(FULL))
        connection = stack.enter_context(duckdb.connect(":memory:"))
        other: Register = stack.enter_context(open_register(connection, lake))
        same = stack.enter_context(other.taking_part(core.staging_dir, FULL))
        first, second, third, *_ = staged.batches
        other.find(same, [second, third])
        with one.database.transaction(turn=first.number):
            one._apply(staged, first, 1)
            assert not other.apply(same, second).already_applied
        assert one.apply(staged, first).already_applied
        with pytest.raises(duckdb.TransactionException), one.database.transaction(turn=3):
            one._apply(staged, third, 1)
            assert not other.apply(same, third).already_applied
        assert one.apply(staged, third).already_applied
        assert one.database.count(
            "SELECT count(*) FROM import_job_batches WHERE status = 'completed'"
        ) == 3 * 7 * len(FULL.operations)
        with pytest.raises(duckdb.TransactionException), one.database.transaction():
            other.database.commit(lambda: None, turn=TURNS - 1)


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(900)
def test_workers_that_are_killed_are_replaced_and_readers_see_whole_extracts(
    lake: Lake, tmp_path: Path
) -> None:
    full, update = (
        write_extract(tmp_path, FULL, FIRST),
        write_extract(tmp_path, UPDATE, SECOND, DELETES),
    )
    file = Core(tmp_path / "file", batch_rows=13)
    core = Core(tmp_path / "core", batch_rows=13, shared=lake)
    for key, zip_file in ((FULL, full), (UPDATE, update)):
        before = core.content_hash() if key == UPDATE else None
        batches = core.stage(zip_file).batches
        with (
            duckdb.connect(":memory:") as connection,
            open_register(connection, lake) as register,
            register.opening(core.staging_dir, key) as staged,
        ):
            told: list[str] = []
            settings = settings_of(core, workers=2)
            with ApplyPool(settings, key, staged.batches, report=told.append) as pool:
                done = []
                while (outcome := pool.next_outcome()) is not None:
                    assert isinstance(outcome.result, BatchChange), outcome.result
                    done.append(outcome.batch.number)
                    if len(done) == 1:
                        os.kill(pool.pids[0], signal.SIGKILL)
                pids = pool.pids
            assert sorted(done) == [batch.number for batch in batches]
            assert "has died" in told[0]
            assert not any(psutil.pid_exists(pid) for pid in pids)
            assert register.ledger.missing_batches(key) == 0
        assert before is None or core.content_hash() == before
        if key == UPDATE:  # half applied, as readers see it; and gone whole
            assert core.rollback(key).dropped
            assert core.content_hash() == before
            core.import_zip(zip_file)
        else:
            core.publish(key)
        file.import_zip(zip_file)
        assert core.content_hash() == file.content_hash()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_batch_that_cannot_be_applied_fails_and_the_others_go_on(
    lake: Lake, tmp_path: Path
) -> None:
    core = Core(tmp_path / "core", batch_rows=13, shared=lake)
    core.stage(write_extract(tmp_path, FULL, FIRST))
    with duckdb.connect(str(core.staging_dir / f"{FULL}.duckdb")) as staging:
        staging.execute("DELETE FROM address WHERE rowid = 0")
    with (
        duckdb.connect(":memory:") as connection,
        open_register(connection, lake) as register,
        register.opening(core.staging_dir, FULL) as staged,
        ApplyPool(settings_of(core, workers=2), FULL, staged.batches) as pool,
    ):
        outcomes = []
        while (outcome := pool.next_outcome()) is not None:
            outcomes.append(outcome)
        failed = [outcome for outcome in outcomes if isinstance(outcome.result, RegisterError)]
        assert len(failed) == 1
        assert "stage 0140-full again" in str(failed[0].result)
        register.ledger.fail(staged, failed[0].batch, 1, str(failed[0].result))
        assert len(outcomes) == len(staged.batches)
        assert register.ledger.missing_batches(FULL) == 1
        assert register.ledger.job_status(FULL) == "failed"


PARENT = """
import sys
import time
from pathlib import Path
from kbo_pipeline.apply.pool import ApplyPool
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.batches import Batch

key = ExtractKey.parse("0140-full")
with ApplyPool(load_settings(), key, [Batch(1, None, None)]) as pool:
    pool._give_out(lambda: True)
    print(*pool.pids, flush=True)
    time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.timeout(300)
def test_workers_end_with_the_process_that_started_them(lake: Lake, tmp_path: Path) -> None:
    settings = settings_of(Core(tmp_path / "core", shared=lake), workers=2)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env={**os.environ, **settings.environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(900)
def test_a_lake_of_an_earlier_version_goes_on(lake: Lake, tmp_path: Path) -> None:
    core = Core(tmp_path / "core", batch_rows=10_000, shared=lake)
    full = write_extract(tmp_path, FULL, FIRST)
    core.import_zip(full)
    before = core.content_hash()
    with duckdb.connect(":memory:") as connection:
        attach_to_write(connection, lake, "register")
        connection.execute("USE register.work")
        connection.execute("CREATE TABLE import_turn (number BIGINT NOT NULL)")
        connection.execute("DROP TABLE closing")
        for turn in range(TURNS):
            connection.execute(f"DROP TABLE import_turn_{turn:02d}")
    core.import_zip(write_extract(tmp_path, UPDATE, SECOND, DELETES))
    core.rollback(UPDATE)
    assert core.content_hash() == before
    with duckdb.connect(":memory:") as connection:
        attach_to_write(connection, lake, "register")
        found = connection.execute(
            "SELECT 1 FROM duckdb_tables() WHERE table_name = 'import_turn'"
        ).fetchall()
        assert not found
