"""`parquet_export`, `search_index` and `full_verification` in Dagster, in this process."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

import kbo_pipeline.defs.sensors.inbox as inbox_module
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.definitions import defs
from kbo_pipeline.defs.assets import published as assets
from kbo_pipeline.defs.assets.published import FULL_CHECK
from kbo_pipeline.defs.sensors.due import (
    export_when_published,
    index_when_published,
    proof_sensor,
    verify_when_at_hand,
)
from kbo_pipeline.defs.sensors.inbox import inbox_sensor
from kbo_pipeline.defs.step import give_way
from kbo_pipeline.fetch.inbox import Inbox
from kbo_pipeline.operate.markers import pause, resume
from kbo_pipeline.operate.runs.claims import last_in_queue
from kbo_pipeline.operate.runs.partitions import register_extract
from kbo_pipeline.operate.runs.progress import EXPORT_JOB, EXTRACT_TAG, PUBLISHED
from kbo_pipeline.operate.runs.status import failure_message
from kbo_pipeline.read.export import write_export_and_deltas
from kbo_pipeline.read.index import MARK
from kbo_pipeline.read.manifest import MANIFEST
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline.sample.portal import StandInPortal
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.pipeline import Pipeline, run_status
from kbo_pipeline_tests.support.server import running_server

SAMPLE = Sample(enterprises=60, seed=8)
FIRST, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published Full and Update, and the ZIPs, a Full of the Update's number among them."""
    directory = tmp_path_factory.mktemp("made")
    core = Core(directory / "data", batch_rows=1000)
    core.import_zip(SAMPLE.write_full(directory / "zips", 140))
    core.import_zip(SAMPLE.write_update(directory / "zips", 141))
    SAMPLE.write_full(directory / "zips", 141)
    return directory


@pytest.fixture
def settings(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A copy of that; nothing is in downloads."""
    shutil.copytree(made / "data", tmp_path / "data")
    monkeypatch.setenv("KBO_DATA_DIR", str(tmp_path / "data"))
    settings = load_settings()
    settings.downloads_dir.mkdir()
    return settings


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Knows of both publications."""
    with dg.DagsterInstance.ephemeral() as instance:
        for key in (FIRST, UPDATE):
            tell(instance, key)
        yield instance


def tell(instance: dg.DagsterInstance, key: ExtractKey) -> None:
    register_extract(instance, key)
    event = dg.AssetMaterialization(PUBLISHED, partition=str(key))
    instance.report_runless_asset_event(event)


def run(
    instance: dg.DagsterInstance, job: str, key: ExtractKey | None = None
) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance, partition_key=str(key) if key is not None else None, raise_on_error=False
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    data = event.step_failure_data.user_failure_data
    assert data is not None, event.step_failure_data.error
    return str(data.description)


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    assert result.success
    (event,) = result.get_asset_materialization_events()
    return {name: plain(value) for name, value in event.materialization.metadata.items()}


def plain(value: dg.MetadataValue[Any]) -> Any:
    """The value of metadata; the rows of a table."""
    if isinstance(value, dg.TableMetadataValue):
        return [record.data for record in value.records]
    return value.value


def requests(sensor: Any, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    with dg.build_sensor_context(instance=instance) as context:
        found = sensor(context)
    if isinstance(found, dg.SkipReason):
        return []
    return list(found.run_requests or ()) if isinstance(found, dg.SensorResult) else [found]


def full_at_hand(settings: Settings, made: Path, number: int = 141) -> Path:
    (file,) = (made / "zips").glob(f"*_{number:04d}_*_Full.zip")
    return Path(shutil.copy(file, settings.downloads_dir))


def test_the_newest_extract_is_exported_with_its_numbers(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    said = metadata(run(instance, "export_parquet", UPDATE))
    directory = settings.data_dir / "exports" / "current"
    assert said["directory"] == str(directory)
    assert said["source"] == "Source: KBO Open Data, FPS Economy; data of 2025-10-05"
    assert said["privacy"] == "full"
    with duckdb.connect() as reader:
        for name in ("enterprise", "activity", "enterprise_profile"):
            ((rows,),) = reader.execute(
                f"SELECT count(*) FROM '{directory / name}.parquet'"
            ).fetchall()
            assert said[f"rows/{name}"] == rows > 10
    assert said["bytes"] == sum(file["bytes"] for file in said["files"])
    assert {*(file["file"] for file in said["files"]), MANIFEST} == {
        path.name for path in directory.iterdir()
    }
    (delta,) = settings.deltas_dir.iterdir()
    (row,) = said["deltas"]
    written = json.loads((delta / MANIFEST).read_text())
    assert row == {
        "directory": delta.name,
        "rows_added": sum(table["added"] for table in written["tables"].values()),
        "rows_removed": sum(table["removed"] for table in written["tables"].values()),
        "bytes": sum(path.stat().st_size for path in delta.glob("*.parquet")),
    }
    assert (delta.name, row["rows_added"] > 0) == ("0140-full_0141-update", True)
    assert said["content_hash"] == written["to"]["content_hash"]


def test_the_search_index_is_made_when_it_is_not_that_of_the_newest_extract(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    assert index_when_published.default_status == dg.DefaultSensorStatus.RUNNING
    (request,) = requests(index_when_published, instance)
    assert (request.partition_key, request.tags) == (None, last_in_queue(UPDATE))
    said = metadata(run(instance, "build_search_index"))
    assert said["directory"] == str(settings.search_dir)
    assert (said["extract"], said["privacy"], said["how"]) == ("0141-update", "full", "made")
    assert said["documents"] >= said["enterprises_written"] > 50
    assert requests(index_when_published, instance) == []
    assert metadata(run(instance, "build_search_index"))["how"] == "kept"
    (settings.search_dir / MARK).unlink()
    (again,) = requests(index_when_published, instance)
    assert again.run_key is not None and request.run_key is not None
    assert again.run_key.rsplit(":", 1)[0] == request.run_key.rsplit(":", 1)[0]  # then the hour
    pause(settings)
    assert requests(index_when_published, instance) == []
    resume(settings)
    settings.database_file.unlink()
    assert requests(index_when_published, instance) == []


def test_an_older_extract_is_not_exported(instance: dg.DagsterInstance, settings: Settings) -> None:
    line = failure(run(instance, "export_parquet", FIRST))
    assert line.startswith("0140-full: only the newest published extract is exported")
    assert not settings.export_dir.exists()


def test_an_export_of_what_is_rolled_back_meanwhile_fails(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_roll_back(*arguments: Any, **options: Any) -> Any:
        written = write_export_and_deltas(*arguments, **options)
        Core(settings.data_dir, batch_rows=1000).rollback(UPDATE)
        return written

    monkeypatch.setattr(assets, "write_export_and_deltas", then_roll_back)
    line = failure(run(instance, "export_parquet", UPDATE))
    assert line == "0141-update: rolled back meanwhile; export what is published now"


def test_who_stops_an_export_stops_no_import(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        (at_work,) = instance.get_runs(dg.RunsFilter(job_name=EXPORT_JOB))
        instance.report_run_canceling(at_work)
        raise dg.DagsterExecutionInterruptedError

    monkeypatch.setattr(assets, "write_export_and_deltas", stop)
    tags = {EXTRACT_TAG: str(UPDATE)}
    waiting = dg.DagsterRun("stage_extract", status=dg.DagsterRunStatus.NOT_STARTED, tags=tags)
    instance.add_run(waiting)
    (event,) = [e for e in run(instance, "export_parquet", UPDATE).all_events if e.is_step_failure]
    assert failure_message(event) == "0141-update: stopped"
    assert run_status(instance, waiting.run_id) == dg.DagsterRunStatus.NOT_STARTED


def test_exports_begin_when_somebody_switches_their_sensor_on(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    assert export_when_published.default_status == dg.DefaultSensorStatus.STOPPED
    (request,) = requests(export_when_published, instance)
    assert request.partition_key == "0141-update"
    assert requests(export_when_published, instance)[0].run_key == request.run_key
    tell(instance, UPDATE)  # published once more, after a rollback
    assert requests(export_when_published, instance)[0].run_key != request.run_key
    pause(settings)
    assert requests(export_when_published, instance) == []
    resume(settings)
    settings.database_file.unlink()
    assert requests(export_when_published, instance) == []


def test_a_full_of_the_same_number_is_compared_and_the_check_passes(
    instance: dg.DagsterInstance, settings: Settings, made: Path
) -> None:
    full_at_hand(settings, made)
    result = run(instance, "verify_full", UPDATE)
    said = metadata(result)
    assert (said["full"], said["drift"]) == ("0141-full", 0)
    by_table = {row["table"]: row for row in said["tables"]}
    assert by_table["activity"]["rows_in_zip"] == by_table["activity"]["rows_in_register"] > 100
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == (FULL_CHECK, True)
    assert str(check.description).startswith("0141-update: equal to 0141-full, ")


def test_drift_is_a_failed_check_with_its_rows_and_the_run_succeeds(
    instance: dg.DagsterInstance, settings: Settings, made: Path
) -> None:
    full_at_hand(settings, made)
    with duckdb.connect(str(settings.database)) as connection:
        ((number,),) = connection.execute(
            "SELECT min(entity_number) FROM contact WHERE _is_current"
        ).fetchall()
        connection.execute("UPDATE contact SET value = 'x' WHERE entity_number = $1", [number])
        ((drifted,),) = connection.execute(
            "SELECT count(*) FROM contact WHERE _is_current AND value = 'x'"
        ).fetchall()
    result = run(instance, "verify_full", UPDATE)
    assert metadata(result)["drift"] == 2 * drifted > 0
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.ERROR
    assert f"contact {drifted} only in the ZIP, {drifted} only in the register" in str(
        check.description
    )
    sample = plain(check.metadata["sample"])
    assert {row["only_in"] for row in sample} == {"ZIP", "register"}
    assert all(number in row["row"] for row in sample)


def test_without_a_full_at_hand_it_says_where_to_put_one(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    line = failure(run(instance, "verify_full", UPDATE))
    assert line.startswith("0141-full: no ZIP of it in ")


def test_a_full_at_hand_is_compared_once(
    instance: dg.DagsterInstance, settings: Settings, made: Path
) -> None:
    assert requests(verify_when_at_hand, instance) == []
    full_at_hand(settings, made, 140)  # the one that was published itself
    assert requests(verify_when_at_hand, instance) == []
    file = full_at_hand(settings, made)
    (request,) = requests(verify_when_at_hand, instance)
    assert request.partition_key == "0141-update"
    assert requests(verify_when_at_hand, instance)[0].run_key == request.run_key
    file.touch()  # another ZIP
    assert requests(verify_when_at_hand, instance)[0].run_key != request.run_key
    pause(settings)
    assert requests(verify_when_at_hand, instance) == []


def test_of_extracts_that_dagster_has_forgotten_none_is_compared(
    settings: Settings, made: Path
) -> None:
    full_at_hand(settings, made)
    with dg.DagsterInstance.ephemeral() as empty:
        assert requests(verify_when_at_hand, empty) == []


def test_a_full_in_the_inbox_whose_number_is_published_is_kept_to_be_compared(
    instance: dg.DagsterInstance,
    settings: Settings,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kbo_pipeline.fetch.inbox.SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(inbox_module, "COPYING_SECONDS", -1.0)
    inbox = Inbox(settings.inbox_dir)
    inbox.prepare()
    (file,) = (made / "zips").glob("*_0141_*_Full.zip")
    shutil.copy(file, inbox.directory / "dropped.zip")
    assert requests(inbox_sensor, instance) == []
    assert (inbox.done_dir / "dropped.zip.txt").read_text() == (
        "0141-full: 0141-update is published: full_verification compares the register with it.\n"
    )
    assert [path.name for path in settings.downloads_dir.glob("*.zip")] == [file.name]
    assert len(requests(verify_when_at_hand, instance)) == 1


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.rare
def test_by_themselves_a_dropped_full_is_compared_and_publications_are_exported(
    made: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline(tmp_path)
    shutil.copytree(made / "data", tmp_path, dirs_exist_ok=True)  # kbo start tells Dagster of it
    (full,) = (made / "zips").glob("*_0141_*_Full.zip")
    with pipeline.instance() as instance, running_server(pipeline) as server:
        shutil.copy(full, pipeline.directory / "inbox")
        server.start_sensor("export_when_published")
        server.wait_for_run("verify_full", "SUCCESS")
        server.wait_for_run("export_parquet", "SUCCESS")
        key = dg.AssetCheckKey(dg.AssetKey("full_verification"), FULL_CHECK)
        records = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
        event = records[key].event
        assert event is not None
        assert event.dagster_event is not None
        assert event.dagster_event.asset_check_evaluation_data.passed
    manifest = json.loads((tmp_path / "exports" / "current" / MANIFEST).read_text())
    assert manifest["extract"] == "0141-update"
    assert pipeline.kbo("verify", full).returncode == 0


def days_ago(settings: Settings, days: int) -> None:
    """Makes the first publication, and all proofs, so old."""
    with duckdb.connect(str(settings.database)) as connection:
        connection.execute(
            "UPDATE import_jobs SET completed_at = now() - to_days($days::INTEGER)", {"days": days}
        )
    for file in settings.proofs_dir.glob("*.json"):
        content = json.loads(file.read_text())
        moment = datetime.now(UTC) - timedelta(days=days)
        file.write_text(json.dumps(content | {"verified_at": moment.isoformat()}))


@pytest.fixture
def quiet_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbo_pipeline.defs.sensors.due._BUSY_HOURS", range(0))


def skipped(instance: dg.DagsterInstance) -> str:
    with dg.build_sensor_context(instance) as context:
        told = proof_sensor(context)
    assert isinstance(told, dg.SkipReason)
    return str(told.skip_message)


@pytest.mark.usefixtures("quiet_hour")
def test_the_newest_number_is_compared_each_week(
    instance: dg.DagsterInstance,
    settings: Settings,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "KBO_USERNAME, KBO_PASSWORD: not set" in skipped(instance)
    monkeypatch.setenv("KBO_USERNAME", "somebody")
    monkeypatch.setenv("KBO_PASSWORD", "secret")
    assert "nothing is compared yet; next in" in skipped(instance)
    days_ago(settings, 8)
    (request,) = requests(proof_sensor, instance)
    assert (request.partition_key, str(request.run_key)[:6]) == ("0141-update", "prove:")
    assert request.tags["dagster/priority"] == last_in_queue(UPDATE)["dagster/priority"]
    assert requests(proof_sensor, instance)[0].run_key == request.run_key  # once a day
    full_at_hand(settings, made)
    run(instance, "verify_full", UPDATE)
    assert "0141-update: equal to KBO's Full" in skipped(instance)
    days_ago(settings, 6)
    assert "next in" in skipped(instance)
    days_ago(settings, 8)
    assert len(requests(proof_sensor, instance)) == 1
    monkeypatch.setenv("KBO_PROVE_DAYS", "0")
    assert skipped(instance) == "KBO_PROVE_DAYS is 0: nothing is compared by itself"


def test_no_full_is_fetched_in_the_hours_in_which_kbo_publishes(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KBO_USERNAME", "somebody")
    monkeypatch.setenv("KBO_PASSWORD", "secret")
    monkeypatch.setattr("kbo_pipeline.defs.sensors.due._BUSY_HOURS", range(24))
    days_ago(settings, 8)
    assert skipped(instance) == "0141-update is to be compared with its Full after 24:00"
    pause(settings)
    assert skipped(instance).startswith("paused")


def test_a_full_is_fetched_to_be_compared_and_removed(
    instance: dg.DagsterInstance,
    settings: Settings,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless the register could not be made again without it: then it is kept."""
    with StandInPortal(made / "zips") as portal:
        monkeypatch.setenv("KBO_PORTAL_URL", portal.url)
        monkeypatch.setenv("KBO_USERNAME", "demo")
        monkeypatch.setenv("KBO_PASSWORD", "demo")
        for key in (FIRST, UPDATE):
            for file in (made / "zips").glob(f"*_{key.number:04d}_*_{key.type.title()}.zip"):
                settings.downloads_dir.mkdir(exist_ok=True)
                shutil.copy(file, settings.downloads_dir)
        assert metadata(run(instance, "verify_full", UPDATE))["drift"] == 0
        names = {file.name for file in settings.downloads_dir.glob("*.zip")}
        assert len(names) == 2 and not (settings.work_dir / "proving").exists()
        for file in settings.downloads_dir.glob("*.zip"):
            file.unlink()
        assert metadata(run(instance, "verify_full", UPDATE))["drift"] == 0
        (kept,) = settings.downloads_dir.glob("*.zip")
        assert kept.name.endswith("_Full.zip") and "_0141_" in kept.name


def test_a_step_that_only_reads_gives_way_to_imports_in_a_process_of_its_own() -> None:
    before = os.nice(0)
    give_way()
    assert os.nice(0) == before
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(give_way).result()
        assert pool.submit(os.nice, 0).result() == min(before + 10, 19)
