"""A batch that fails: exactly its partitions are red, and only they run again."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from kbo_pipeline.commands.demo import damage
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.lakes import ASKED_FOR
from kbo_pipeline_tests.support.pipeline import (
    BAD,
    Pipeline,
    materializations,
    partition_states,
    stale_partitions,
)
from kbo_pipeline_tests.support.server import running_server

EXTRACT = "0140-full"
BAD_KEYS = [f"{EXTRACT}-{number:04d}" for number in BAD]
MANY = "30" if ASKED_FOR else "150"  # batches; in a lake fewer take as long
TABLE_NAMES = [table.name for table in TABLES]


@pytest.fixture(scope="module")
def zip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Sample(enterprises=60, seed=3).write_full(tmp_path_factory.mktemp("zips"), 140)


@pytest.fixture
def pipeline(tmp_path: Path, zip_file: Path) -> Iterator[Pipeline]:
    """A pipeline with the ZIP in its downloads directory."""
    pipeline = Pipeline(tmp_path)
    (tmp_path / "downloads").mkdir()
    shutil.copy(zip_file, tmp_path / "downloads")
    with pipeline.instance() as instance:
        instance.add_dynamic_partitions("kbo_extracts", [EXTRACT])
        yield pipeline


@pytest.mark.rare
def test_exactly_the_failed_batches_are_failed_and_retried_then_published(
    pipeline: Pipeline,
) -> None:
    staging_assets = ",".join(f"import_staging_{name}" for name in [*TABLE_NAMES, "code"])
    pipeline.dagster(
        *("asset", "materialize", "-m", "kbo_pipeline.definitions"),
        *("--select", f"extract_zip,{staging_assets}", "--partition", EXTRACT),
    )
    staging_file = pipeline.directory / "staging" / f"{EXTRACT}.duckdb"
    damage(staging_file, BAD)

    failed = pipeline.finish(EXTRACT)
    assert failed.returncode == 1
    assert f"2 of 6 batches failed: {', '.join(BAD_KEYS)}; the first one: " in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert not pipeline.is_published
    with pipeline.instance() as instance:
        for name, states in partition_states(instance, EXTRACT).items():
            assert [k for k, s in states.items() if s == "FAILED"] == BAD_KEYS, name
            assert sum(s == "MATERIALIZED" for s in states.values()) == 4, name
            wanted = dg.AssetRecordsFilter(dg.AssetKey(name), asset_partitions=[BAD_KEYS[0]])
            (seen,) = instance.fetch_observations(wanted, limit=2).records
            assert seen.asset_observation is not None
            found = {n: v.value for n, v in seen.asset_observation.metadata.items()}
            assert "rows were staged" in str(found["error"])
            assert found["batch"] == "2 of 6"
            assert str(found["first_number"]) < str(found["next_number"])
    status = json.loads(pipeline.kbo("status", EXTRACT, "--json").stdout)
    assert status["status"] == "failed"
    overall = status["overall"]
    assert (overall["completed"], overall["total"]) == (28, 42)
    assert status["stage"] == "applying" and 50 < overall["percentage"] < 90
    assert {place["batch"] for place in status["failed_batches"]} == set(BAD)
    assert len(status["failed_batches"]) == 14
    assert status["next_batch"] == {"table": "enterprise", "batch": 2, "operation": "insert"}
    assert "rows were staged" in status["error"]

    retried = pipeline.kbo("retry", EXTRACT)
    all_batches = f"{EXTRACT}-0001 to {EXTRACT}-0006"  # those that are applied do nothing
    assert retried.stdout == f"{EXTRACT}: staging, {all_batches}, publication\n"
    with pipeline.instance() as instance:
        for name, states in partition_states(instance, EXTRACT).items():
            assert set(states.values()) == {"MATERIALIZED"}, name
    with pipeline.read() as connection:
        rows = connection.execute(
            "SELECT DISTINCT status, attempts FROM import_job_batches"
        ).fetchall()
        assert rows == [("completed", 1)]
    assert not staging_file.exists()
    again = pipeline.kbo("retry", EXTRACT)
    assert again.stdout == f"{EXTRACT}: published: nothing to retry\n"


@pytest.mark.rare
def test_a_backfill_of_the_failed_partitions_publishes_the_extract(pipeline: Pipeline) -> None:
    with running_server(pipeline) as server:
        said = (pipeline.directory / "start.log").read_text()
        assert "portal: not asked, because KBO_USERNAME and KBO_PASSWORD are not set\n" in said
        server.stop_sensor("apply_when_staged")
        server.launch("stage_extract", EXTRACT)
        server.wait_for_run("stage_extract", "SUCCESS")
        sound = damage(pipeline.directory / "staging" / f"{EXTRACT}.duckdb", BAD)
        server.start_sensor("apply_when_staged")
        server.wait_for_run("apply_batches", "FAILURE")
        with pipeline.instance() as instance:
            for name, states in partition_states(instance, EXTRACT).items():
                assert [k for k, s in states.items() if s == "FAILED"] == BAD_KEYS, name

        sound.replace(pipeline.directory / "staging" / f"{EXTRACT}.duckdb")
        server.backfill(TABLE_NAMES, BAD_KEYS)
        server.wait_for_run("publish_extract", "SUCCESS")
        with pipeline.instance() as instance:
            for name in TABLE_NAMES:
                assert set(materializations(instance, name).values()) == {1}, name
        server.launch("stage_extract", EXTRACT)  # which is published: nothing is done
        server.wait_for_run("stage_extract", "SUCCESS", count=2)
        with pipeline.instance() as instance:
            assert stale_partitions(instance) == []
    assert pipeline.is_published


@pytest.mark.rare
def test_stages_follow_each_other_by_themselves_in_extract_order(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    Sample(enterprises=60, seed=3).write_update(tmp_path / "downloads", 141)
    with running_server(pipeline) as server:
        server.add_partition("0141-update")
        server.launch("stage_extract", "0141-update")
        server.wait_for_run("stage_extract", "SUCCESS")
        time.sleep(6)  # one interval of the sensors: the Update must wait for the Full
        assert not server.runs("apply_batches")
        server.launch("stage_extract", EXTRACT)
        server.wait_for_run("publish_extract", "SUCCESS", count=2)
        order = [server.extract_of(run) for run in server.runs("publish_extract")]
        assert order == [EXTRACT, "0141-update"]
    assert _published(pipeline) == 141


@pytest.mark.rare
def test_a_run_that_kbo_start_was_stopped_in_goes_on_after_the_next_start(
    pipeline: Pipeline,
) -> None:
    pipeline.settings |= {"KBO_BATCH_ROWS": "10", "KBO_MAX_BATCHES": MANY}
    with running_server(pipeline) as server:
        server.launch("stage_extract", EXTRACT)
        server.wait_for_run("apply_batches", "STARTED")
    assert not pipeline.is_published
    with running_server(pipeline) as server:
        server.wait_for_run("publish_extract", "SUCCESS")
    with pipeline.read() as connection:
        rows = connection.execute("SELECT DISTINCT status FROM import_job_batches").fetchall()
    assert rows == [("completed",)]


def _published(pipeline: Pipeline) -> int:
    with pipeline.read() as connection:
        (row,) = connection.execute("SELECT max(extract_number) FROM import_jobs").fetchall()
    return int(row[0])
