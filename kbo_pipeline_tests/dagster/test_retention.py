"""What is too old goes: partitions, runs and events of extracts, ZIPs; nothing that is needed."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import text

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.defs.sensors import upkeep
from kbo_pipeline.defs.sensors.upkeep import old_extracts, remove_extract, retention_sensor
from kbo_pipeline.fetch.zips import remove_old_zips
from kbo_pipeline.operate.runs.claims import claim_file
from kbo_pipeline.operate.runs.partitions import (
    forget_extract,
    kbo_batches,
    kbo_extracts,
    mistyped_partitions,
)
from kbo_pipeline.operate.runs.progress import (
    ASSETS_OF_JOBS,
    RANGE_END_TAG,
    RANGE_START_TAG,
    Progress,
)
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.year import Year

KEYS = [ExtractKey(140, "full"), *(ExtractKey(number, "update") for number in range(141, 146))]
ASSETS = [asset for assets in ASSETS_OF_JOBS.values() for asset in assets]
DAY = 86_400.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """One PostgreSQL for all tests of this file."""
    with Pipeline(tmp_path_factory.mktemp("data")).instance() as instance:
        yield instance


@pytest.fixture
def instance(shared: dg.DagsterInstance) -> Iterator[dg.DagsterInstance]:
    """Six published extracts with three batches each."""
    year = Year(shared, batches=3)
    for key in KEYS:
        year.import_extract(key)
    year.write()
    yield shared
    for run in shared.get_runs():
        shared.delete_run(run.run_id)
    for name in ("kbo_extracts", "kbo_batches"):
        for partition in shared.get_dynamic_partitions(name):
            shared.delete_dynamic_partition(name, partition)
    shared.wipe_asset_cached_status([dg.AssetKey(name) for name in ASSETS])


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("KBO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KBO_KEEP_EXTRACTS", "2")
    return load_settings()


def tick(instance: dg.DagsterInstance) -> str:
    with dg.build_sensor_context(instance=instance) as context:
        found = retention_sensor(context)
    assert isinstance(found, dg.SkipReason)
    return str(found.skip_message)


def mentions(instance: dg.DagsterInstance, key: ExtractKey) -> dict[str, int]:
    """How many rows of Dagster's tables speak of an extract."""
    assert isinstance(instance.event_log_storage, PostgresEventLogStorage)
    counts = {
        "events": "event_logs WHERE partition LIKE :key",
        "partitions": "dynamic_partitions WHERE partition LIKE :key",
        "tags": "run_tags WHERE value LIKE :key",
        "runs": "runs WHERE run_body LIKE '%' || :key",
    }
    with instance.event_log_storage.index_connection() as connection:
        found = {
            name: connection.execute(
                text(f"SELECT count(*) FROM {query}"), {"key": f"{key}%"}
            ).scalar()
            for name, query in counts.items()
        }
    return {name: int(count) for name, count in found.items() if count}


def test_nothing_is_left_of_old_extracts_and_all_of_the_newest(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    before = {key: mentions(instance, key) for key in KEYS}
    gone, kept = KEYS[:-2], KEYS[-2:]
    assert old_extracts(Progress(instance), 2) == gone
    assert tick(instance) == f"removed: {', '.join(map(str, gone))}"
    assert {key: mentions(instance, key) for key in gone} == {key: {} for key in gone}
    assert {key: mentions(instance, key) for key in kept} == {key: before[key] for key in kept}
    progress = Progress(instance)
    assert progress.known == set(progress.published) == set(progress.staged) == set(kept)
    assert progress.newest_published == kept[-1]
    assert progress.missing_batches(kept[-1]) == []
    for name in ASSETS:
        is_batch = name in ASSETS_OF_JOBS["apply_batches"]
        partitions = kbo_batches if is_batch else kbo_extracts
        keys = instance.get_dynamic_partitions(str(partitions.name))
        found = instance.get_status_by_partition(dg.AssetKey(name), keys, partitions)
        assert {s.value for s in (found or {}).values() if s} == {"MATERIALIZED"}, name
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == set(keys), name
    assert tick(instance) == "nothing is too old"


def test_what_was_bridged_by_a_full_goes_too_and_what_is_not_published_yet_stays(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    year = Year(instance, batches=3)
    bridged, waiting = ExtractKey(139, "update"), ExtractKey(146, "update")
    year.import_extract(bridged, ["stage_extract"])
    year.import_extract(waiting, ["stage_extract"])
    year.write()
    settings.staging_dir.mkdir(parents=True)
    for key in (bridged, waiting):
        (settings.staging_dir / f"{key}.duckdb").touch()
    assert tick(instance).startswith("removed: 0139-update, 0140-full,")
    assert mentions(instance, waiting)
    assert [file.stem for file in settings.staging_dir.iterdir()] == [str(waiting)]
    assert Progress(instance).next_to_apply == waiting


def test_runs_at_work_and_claimed_extracts_are_left_alone(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    year = Year(instance, batches=3)
    assets = ASSETS_OF_JOBS["stage_extract"]
    tags = {"dagster/partition": str(KEYS[1])}
    year.run("stage_extract", assets, [str(KEYS[1])], tags, dg.DagsterRunStatus.STARTED)
    year.write()
    with exclusive_lock(claim_file(settings, KEYS[2])):
        assert tick(instance) == f"removed: {KEYS[0]}, {KEYS[3]}"
    assert mentions(instance, KEYS[1]) and mentions(instance, KEYS[2])


def test_a_run_over_batches_of_a_later_extract_too_stays_with_its_events(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    year = Year(instance, batches=3)
    partitions = [f"{KEYS[0]}-0003", f"{KEYS[-1]}-0001"]
    tags = {RANGE_START_TAG: partitions[0], RANGE_END_TAG: partitions[-1]}
    run_id = year.run("__ASSET_JOB", ASSETS_OF_JOBS["apply_batches"], partitions, tags)
    year.write()
    before = mentions(instance, KEYS[-1])
    tick(instance)
    assert instance.has_run(run_id)
    assert mentions(instance, KEYS[-1]) == before
    assert "events" not in mentions(instance, KEYS[0])


def test_a_tick_ends_in_time_and_the_next_goes_on(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_SECONDS_A_TICK", 0.0)
    assert [tick(instance) for _ in range(5)] == [
        *(f"removed: {key}" for key in KEYS[:4]),
        "nothing is too old",
    ]


def test_partitions_under_wrong_names_are_removed_but_not_from_a_run_that_is_to_say_so(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    instance.add_dynamic_partitions("kbo_extracts", ["140", "0140-ful"])
    instance.add_dynamic_partitions("kbo_batches", ["0001", "0999-full-0001"])
    queued = instance.add_run(
        dg.DagsterRun(
            job_name="stage_extract",
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags={"dagster/partition": "140"},
        )
    )
    assert tick(instance).startswith("removed: 0140-ful, 0001, 0999-full-0001")
    assert "140" in instance.get_dynamic_partitions("kbo_extracts")
    instance.report_run_failed(queued)
    assert tick(instance).startswith("removed: 140")
    assert mistyped_partitions(instance) == []


def test_killed_in_the_middle_the_next_tick_goes_on(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(upkeep, "forget_extract", killed)
    with pytest.raises(SystemExit):
        remove_extract(instance, settings, KEYS[0])
    assert old_extracts(Progress(instance), 5) == [KEYS[0]]  # though five are published
    monkeypatch.setattr(upkeep, "forget_extract", forget_extract)
    tick(instance)
    assert mentions(instance, KEYS[0]) == {}


@pytest.mark.parametrize(
    ("published", "left"),
    [
        ("", "0138-full 0139-update 0140-full 0140-update 0141-update 0142-full"),
        ("0139-update", "0138-full 0139-update 0140-full 0140-update 0141-update 0142-full"),
        ("0138-full", "0138-full 0139-update 0140-full 0140-update 0141-update 0142-full"),
        ("0138-full 0140-full 0141-update", "0140-full 0140-update 0141-update 0142-full"),
        ("0138-full 0140-full 0141-update 0142-full", "0142-full"),
    ],
)
def test_zips_that_are_needed_to_make_the_register_again_stay(
    settings: Settings, published: str, left: str
) -> None:
    now = 1e9
    settings.downloads_dir.mkdir(parents=True)
    for name in ("138_Full", "139_Update", "140_Full", "140_Update", "141_Update", "142_Full"):
        number, kind = name.split("_")
        file = settings.downloads_dir / f"KboOpenData_0{number}_2025_10_05_{kind}.zip"
        file.touch()
        os.utime(file, (now, now - 41 * DAY))
    young = settings.downloads_dir / "KboOpenData_0100_2025_10_05_Full.zip"
    other = settings.downloads_dir / "notes.zip"
    for file, age in ((young, 39), (other, 400)):
        file.touch()
        os.utime(file, (now, now - age * DAY))
    keys = [ExtractKey.parse(word) for word in published.split()]
    removed = remove_old_zips(settings, keys, now)
    files = {file.name for file in settings.downloads_dir.iterdir()}
    assert {young.name, other.name} <= files
    assert not {file.name for file in removed} & files
    found = [name.split("_") for name in sorted(files - {young.name, other.name})]
    assert " ".join(f"{n}-{kind[:-4].lower()}" for _, n, *_, kind in found) == left
