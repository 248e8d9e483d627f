"""With another Dagster than the tested one nothing of its insides is changed, and all is right."""

import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.operate.insides import STOCK
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import rows_of, sorted_rows
from kbo_pipeline_tests.support.pipeline import Pipeline, fetch, partition_states
from kbo_pipeline_tests.support.processes import wait_until
from kbo_pipeline_tests.support.server import running_server

SAMPLE = Sample(enterprises=120, seed=7)


@pytest.fixture
def stock(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "data", {STOCK: "1"})


def assert_published(pipeline: Pipeline, number: int) -> None:
    """Readers have the generator's state of this extract, in each table."""
    with pipeline.read() as connection:
        newest = "SELECT max(extract_number) FROM import_jobs WHERE status = 'completed'"
        assert fetch(connection, newest) == number
        for table in ALL_TABLES:
            truth = sorted_rows(SAMPLE.rows(table.name, number))
            assert rows_of(connection, table, f"current.{table.name}") == truth


@pytest.mark.rare
def test_commands_import_the_true_state_of_each_extract(stock: Pipeline, tmp_path: Path) -> None:
    with stock.instance():
        stock.kbo_process("import", SAMPLE.write_full(tmp_path, 140))
        assert_published(stock, 140)
        update = SAMPLE.write_update(tmp_path, 141)
        for _ in range(2):
            stock.kbo_process("import", update)
            assert_published(stock, 141)
            stock.kbo_process("rollback", "0141-update")
            assert_published(stock, 140)
        stock.kbo_process("import", SAMPLE.write_full(tmp_path, 142))
    assert_published(stock, 142)


@pytest.mark.rare
def test_a_server_takes_the_inbox_and_goes_on_after_a_killed_worker(
    stock: Pipeline, tmp_path: Path
) -> None:
    full, update = SAMPLE.write_full(tmp_path, 140), SAMPLE.write_update(tmp_path, 141)
    inbox = stock.directory / "inbox"
    inbox.mkdir(parents=True)
    with stock.instance() as instance, running_server(stock) as server:
        shutil.copyfile(full, inbox / full.name)
        server.wait_for_run("publish_extract", "SUCCESS")
        shutil.copyfile(update, inbox / update.name)
        wait_for_worker(stock).kill()
        server.wait_for_run("publish_extract", "SUCCESS", count=2)
        states = partition_states(instance, "0141-update")
        assert {state for batches in states.values() for state in batches.values()} == {
            "MATERIALIZED"
        }
    assert_published(stock, 141)


def wait_for_worker(pipeline: Pipeline) -> psutil.Process:
    """The process that holds the lock of a run that is at work."""
    workers: list[psutil.Process] = []

    def look() -> bool:
        held = {str(lock) for lock in (pipeline.directory / "work" / "runs").glob("*.lock")}
        for process in psutil.process_iter() if held else ():
            with suppress(psutil.Error):
                if held & {file.path for file in process.open_files()}:
                    workers.append(process)
        return bool(workers)

    wait_until(look, "a run worker")
    return workers[0]
