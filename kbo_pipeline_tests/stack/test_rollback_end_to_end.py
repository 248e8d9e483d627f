"""Rolling back through Dagster: partitions are missing again, and the extract can come again."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from kbo_pipeline.commands.demo import damage
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import ALL_TABLES, TABLES
from kbo_pipeline.operate.repair.alerts import due_alerts
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.operate.runs.progress import Progress
from kbo_pipeline.read.published import content_hash
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline_tests.support.core import READER
from kbo_pipeline_tests.support.pipeline import (
    BAD,
    Pipeline,
    materializations,
    partition_states,
    stale_partitions,
)
from kbo_pipeline_tests.support.server import Server, running_server

FULL, UPDATE = "0140-full", "0141-update"
FORGOTTEN = [
    *("change_report", "published_extract", "code"),
    *(f"import_staging_{table.name}" for table in ALL_TABLES),
]
TABLE_NAMES = [table.name for table in TABLES]


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    sample = Sample(enterprises=120, seed=5, change_shares=(0.2,))
    return write_sample(tmp_path_factory.mktemp("zips"), sample, 1)[:2]


def hash_of(pipeline: Pipeline) -> str:
    with pipeline.read() as connection:
        return content_hash(connection)


def states(instance: dg.DagsterInstance) -> dict[str, str]:
    """The state of the Update's partition of each asset that has one for the extract."""
    found = {}
    for name in FORGOTTEN:
        keys = instance.get_status_by_partition(dg.AssetKey(name), [UPDATE], kbo_extracts)
        status = (keys or {}).get(UPDATE)
        found[name] = status.value if status else "MISSING"
    return found


def assert_missing(instance: dg.DagsterInstance, batches: list[str]) -> None:
    """Nothing but the ZIP is known of the Update, also when its batches are added again."""
    key = ExtractKey.parse(UPDATE)
    assert [k for k in instance.get_dynamic_partitions("kbo_batches") if UPDATE in k] == batches
    for table, found in partition_states(instance, UPDATE).items():
        assert found == dict.fromkeys(batches, "MISSING"), table
    for name in TABLE_NAMES:
        assert not set(batches) & instance.get_materialized_partitions(dg.AssetKey(name)), name
    assert set(states(instance).values()) == {"MISSING"}
    for name in FORGOTTEN:
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == {FULL}, name
    assert instance.get_materialized_partitions(dg.AssetKey("extract_zip")) == {FULL, UPDATE}
    progress = Progress(instance)
    assert set(progress.staged) == set(progress.published) == {ExtractKey.parse(FULL)}
    assert progress.missing_batches(key) == batches
    assert stale_partitions(instance) == []


def assert_green(instance: dg.DagsterInstance, batches: list[str]) -> None:
    for table, found in partition_states(instance, UPDATE).items():
        assert found == dict.fromkeys(batches, "MATERIALIZED"), table
        assert {materializations(instance, table)[key] for key in batches} == {1}
    assert set(states(instance).values()) == {"MATERIALIZED"}
    assert stale_partitions(instance) == []


def test_kbo_rollback_and_kbo_retry_while_a_reader_reads(
    pipeline: Pipeline, zips: list[Path]
) -> None:
    pipeline.kbo("import", zips[0])
    before = hash_of(pipeline)
    pipeline.kbo("import", zips[1])
    after = hash_of(pipeline)
    with pipeline.instance() as instance:
        batches = [k for k in instance.get_dynamic_partitions("kbo_batches") if UPDATE in k]
        assert len(batches) > 1
        assert_green(instance, batches)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER],
        env=pipeline.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None and reader.stdout.readline() == "ready\n"

    refused = pipeline.kbo("rollback", FULL, check=False)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"kbo: {FULL}: only the newest extract can be rolled back: {UPDATE}, which is published;"
        f" kbo rollback {UPDATE} comes first\n"
    )
    done = pipeline.kbo("rollback", UPDATE)
    assert done.stdout == f"{UPDATE}: rolled back; kbo retry {UPDATE} imports it again\n"
    assert hash_of(pipeline) == before
    with pipeline.instance() as instance:
        assert_missing(instance, batches)
    status = json.loads(pipeline.kbo("status", UPDATE, "--json").stdout)
    assert (status["status"], status["error"]) == ("pending", None)
    assert f"rolled back; kbo retry {UPDATE} imports it" in pipeline.kbo("status").stdout
    retried = pipeline.kbo("retry", UPDATE)
    assert retried.stdout == f"{UPDATE}: staging, {', '.join(batches)}, publication\n"
    assert hash_of(pipeline) == after
    with pipeline.instance() as instance:
        assert_green(instance, batches)
    out, errors = reader.communicate("stop\n", timeout=60)
    assert (reader.returncode, errors) == (0, "")
    seen = {tuple(pair) for pair in json.loads(out.splitlines()[-1])}
    assert seen <= {(False, before), (True, after)}


def counts(server: Server, asset: str) -> dict[str, int]:
    """What the asset's page counts of its partitions."""
    found = server.query(
        "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {"
        " partitionStats { numMaterialized numFailed numMaterializing numPartitions } } } }",
        key={"path": [asset]},
    )
    return dict(found["assetNodeOrError"]["partitionStats"])


def shown(server: Server, asset: str) -> set[str]:
    """The partitions that the asset's page shows as materialized."""
    found = server.query(
        "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {"
        " assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions"
        " failedPartitions unmaterializedPartitions materializingPartitions } } } } }",
        key={"path": [asset]},
    )
    statuses = found["assetNodeOrError"]["assetPartitionStatuses"]
    assert statuses["failedPartitions"] == statuses["materializingPartitions"] == []
    return set(statuses["materializedPartitions"])


@pytest.mark.rare
def test_the_job_in_the_ui_and_its_partitions_in_the_ui(
    pipeline: Pipeline, zips: list[Path]
) -> None:
    pipeline.kbo("import", *zips)
    after = hash_of(pipeline)
    with running_server(pipeline) as server, pipeline.instance() as instance:
        green = {name: shown(server, name) for name in [*TABLE_NAMES, *FORGOTTEN]}
        assert all(any(key.startswith(UPDATE) for key in keys) for keys in green.values())
        server.launch("rollback_extract", UPDATE)
        server.wait_for_run("rollback_extract", "SUCCESS")
        assert server.extract_of(server.runs("rollback_extract")[0]) == UPDATE
        for name, keys in green.items():
            left = {key for key in keys if not key.startswith(UPDATE)}
            assert shown(server, name) == left, name
            missing = len(keys - left)
            assert counts(server, name) == {
                "numMaterialized": len(left),
                "numFailed": 0,
                "numMaterializing": 0,
                "numPartitions": len(left) + missing,
            }, name
        # Nothing comes back by itself, and a wrong name leaves nothing.
        server.add_partition("141")
        server.launch("stage_extract", "141")
        server.wait_for_run("stage_extract", "FAILURE")
        server.wait_for_ticks(2, "apply_when_staged", "publish_when_applied")
        assert [len(server.runs(job)) for job in JOBS] == [3, 2, 2]
        assert instance.get_dynamic_partitions("kbo_extracts") == [FULL, UPDATE]
        assert {counts(server, name)["numFailed"] for name in ["extract_zip", *green]} == {0}
        assert stale_partitions(instance) == []
        assert due_alerts(instance, load_settings(pipeline.environment), time.time()) == []

        server.launch("stage_extract", UPDATE)
        server.wait_for_run("publish_extract", "SUCCESS", count=3)
        assert {name: shown(server, name) for name in green} == green
        assert hash_of(pipeline) == after
        assert_green(instance, sorted(k for k in green["activity"] if k.startswith(UPDATE)))


JOBS = ("stage_extract", "apply_batches", "publish_extract")


@pytest.mark.rare
def test_half_applied_with_failed_batches(pipeline: Pipeline, zips: list[Path]) -> None:
    (pipeline.directory / "downloads").mkdir()
    shutil.copy(zips[0], pipeline.directory / "downloads")
    staging_assets = ",".join(f"import_staging_{table.name}" for table in ALL_TABLES)
    with pipeline.instance() as instance:
        instance.add_dynamic_partitions("kbo_extracts", [FULL])
        pipeline.dagster(
            *("asset", "materialize", "-m", "kbo_pipeline.definitions"),
            *("--select", f"extract_zip,{staging_assets}", "--partition", FULL),
        )
        damage(pipeline.directory / "staging" / f"{FULL}.duckdb", BAD)
        assert "2 of 6 batches failed" in pipeline.finish(FULL).stderr
        batches = instance.get_dynamic_partitions("kbo_batches")

        pipeline.kbo("rollback", FULL)
        assert instance.get_dynamic_partitions("kbo_batches") == batches
        for found in partition_states(instance, FULL).values():
            assert found == {}  # as of an asset that nobody has materialized yet
        assert Progress(instance).staged == {}
        status = json.loads(pipeline.kbo("status", FULL, "--json").stdout)
        assert (status["status"], status["failed_batches"]) == ("pending", [])

        pipeline.kbo("retry", FULL)
        for found in partition_states(instance, FULL).values():
            assert found == dict.fromkeys(batches, "MATERIALIZED")


@pytest.mark.rare
def test_a_rollback_that_was_killed_is_brought_to_its_end_by_the_command(
    pipeline: Pipeline, zips: list[Path]
) -> None:
    pipeline.kbo("import", *zips)
    with pipeline.instance() as instance:
        batches = [k for k in instance.get_dynamic_partitions("kbo_batches") if UPDATE in k]
        pipeline.run("-c", KILLED, UPDATE, check=False)
        assert set(states(instance).values()) == {"MATERIALIZED"}

        at_work, waiting = (
            dg.DagsterRun(job_name="stage_extract", status=status, tags={"kbo/extract": UPDATE})
            for status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.NOT_STARTED)
        )
        instance.add_run(at_work)
        refused = pipeline.kbo("rollback", UPDATE, check=False)
        assert f"run {at_work.run_id} (stage_extract) is at work on it" in refused.stderr
        instance.report_run_canceled(at_work)
        instance.add_run(waiting)
        pipeline.kbo("rollback", UPDATE)
        ended = instance.get_run_by_id(waiting.run_id)
        assert ended is not None and ended.status == dg.DagsterRunStatus.CANCELED
        assert_missing(instance, batches)
        pipeline.kbo("import", zips[1])
        assert_green(instance, batches)


KILLED = """
import os, sys
from kbo_pipeline.defs import jobs
from kbo_pipeline.cli import main
jobs.forget_extract = lambda *_: os._exit(9)
main(["rollback", sys.argv[1]])
"""
