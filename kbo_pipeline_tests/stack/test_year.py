"""A year of daily extracts: how long sensors and pages take.

`make year` prints the figures of docs/decisions/0014-old-extracts-leave-dagster.md;
`YEAR_EXTRACTS` is how many there are.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
import requests
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import text

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.defs.sensors.due import apply_when_staged, publish_when_applied
from kbo_pipeline.defs.sensors.upkeep import old_extracts, remove_extract
from kbo_pipeline.operate.runs.progress import ASSETS_OF_JOBS, Progress
from kbo_pipeline.operate.runs.status import read_status
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.server import Server, running_server
from kbo_pipeline_tests.support.year import Year

EXTRACTS = int(os.environ.get("YEAR_EXTRACTS", "400"))
BATCHES = 25
KEEP = 60
ROUNDS = 5
PARTITIONS_OF_ASSET = """
query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    partitionStats { numMaterialized numFailed numMaterializing numPartitions }
    assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions
        failedPartitions unmaterializedPartitions materializingPartitions } } } } }
"""


def seconds(work: Callable[[], object]) -> float:
    """The median of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[ROUNDS // 2]


def evaluate(sensor: dg.SensorDefinition, instance: dg.DagsterInstance) -> None:
    with dg.build_sensor_context(instance=instance) as context:
        sensor(context)


def plan(instance: dg.DagsterInstance) -> None:
    """What `kbo_extract_sensor` and the alerts read."""
    progress = Progress(instance)
    assert (progress.staging_failures, progress.at_staging) == ({}, set())
    assert progress.newest_published is not None and progress.next_to_apply is not None


def measured(
    instance: dg.DagsterInstance, server: Server, next_one: ExtractKey
) -> dict[str, float]:
    def page(asset: str) -> Callable[[], object]:
        return lambda: server.query(PARTITIONS_OF_ASSET, key={"path": [asset]})

    page("activity")()  # the first one fills Dagster's cache of the asset
    page("published_extract")()
    return {
        "apply_when_staged": seconds(lambda: evaluate(apply_when_staged, instance)),
        "publish_when_applied": seconds(lambda: evaluate(publish_when_applied, instance)),
        "Progress of kbo_extract_sensor": seconds(lambda: plan(instance)),
        "read_status": seconds(lambda: read_status(instance, load_settings(), next_one)),
        "page /kbo": seconds(lambda: requests.get(f"{server.address}/kbo", timeout=60)),
        "page of activity": seconds(page("activity")),
        "page of published_extract": seconds(page("published_extract")),
    }


def rows(instance: dg.DagsterInstance, table: str) -> int:
    assert isinstance(instance.event_log_storage, PostgresEventLogStorage)
    with instance.event_log_storage.index_connection() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() or 0)


@pytest.mark.rare
@pytest.mark.timeout(3600)
def test_a_year_of_extracts_is_as_quick_as_the_first_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(tmp_path, {"KBO_KEEP_EXTRACTS": "10000"})
    monkeypatch.setenv("KBO_DATA_DIR", str(tmp_path))
    found: dict[str, dict[str, float]] = {}
    with pipeline.instance() as instance, running_server(pipeline) as server:
        server.stop_sensor("apply_when_staged")
        server.stop_sensor("publish_when_applied")
        year = Year(instance, BATCHES)
        first = 140

        def grow(count: int, until: int) -> None:
            for number in range(count, until):
                year.import_extract(ExtractKey(first + number, "update" if number else "full"))
            year.import_extract(ExtractKey(first + until, "update"), ["stage_extract"])
            year.write()

        grow(0, 5)
        found["5 extracts"] = measured(instance, server, ExtractKey(first + 5, "update"))
        started = time.monotonic()
        grow(5, EXTRACTS)
        print(f"\nwritten in {time.monotonic() - started:.0f} s")
        next_one = ExtractKey(first + EXTRACTS, "update")
        found[f"{EXTRACTS}, all kept"] = measured(instance, server, next_one)
        print(f"{rows(instance, 'event_logs')} events, {rows(instance, 'runs')} runs")
        taken = []
        for key in old_extracts(Progress(instance), KEEP):
            started = time.monotonic()
            assert remove_extract(instance, load_settings(), key)
            taken.append(time.monotonic() - started)
        taken.sort()
        median = taken[len(taken) // 2]
        print(f"{len(taken)} removed: median {median:.3f} s, {taken[-1]:.3f} s at most")
        found[f"{EXTRACTS}, {KEEP} kept"] = measured(instance, server, next_one)
        print(f"{rows(instance, 'event_logs')} events, {rows(instance, 'runs')} runs")
    print_table(found)
    for name, day_one in found["5 extracts"].items():
        assert found[f"{EXTRACTS}, {KEEP} kept"][name] < 3 * day_one + 0.25, name
    assert len(ASSETS_OF_JOBS) * KEEP + 10 > rows_of_runs(pipeline)


def print_table(found: dict[str, dict[str, float]]) -> None:
    """Milliseconds of what was measured: a row for each thing, a column for each time."""
    print(f"\n| milliseconds of | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for name in next(iter(found.values())):
        print(f"| {name} | {' | '.join(f'{those[name] * 1000:.0f}' for those in found.values())} |")


def rows_of_runs(pipeline: Pipeline) -> int:
    with pipeline.instance() as instance:
        return rows(instance, "runs")
