"""What became of an extract is known however many runs came after; and the order of extracts."""

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.storage.tags import MAX_RETRIES_TAG, WILL_RETRY_TAG
from sqlalchemy import Connection, text

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey, import_order
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.defs.sensors import due
from kbo_pipeline.defs.sensors.due import apply_when_staged
from kbo_pipeline.defs.sensors.upkeep import alert_sensor
from kbo_pipeline.fetch.inbox import InboxFile, in_number_order
from kbo_pipeline.operate.processes.children import alert_log
from kbo_pipeline.operate.repair import dagster_checks
from kbo_pipeline.operate.repair.alerts import due_alerts
from kbo_pipeline.operate.repair.dagster_checks import Installation
from kbo_pipeline.operate.runs import recovery
from kbo_pipeline.operate.runs.cancellation import cancel_extract, note_cancelled
from kbo_pipeline.operate.runs.claims import OWN_RUN
from kbo_pipeline.operate.runs.progress import (
    ASSETS_OF_JOBS,
    CANCELLED_TAG,
    EXPORT_JOB,
    EXTRACT_TAG,
    PARTITION_TAG,
    RANGE_END_TAG,
    RANGE_START_TAG,
    ROLLBACK_JOB,
    SEARCH_JOB,
    VERIFY_JOB,
    Progress,
    import_runs,
    imports,
    job_of,
    runs_about,
)
from kbo_pipeline.operate.runs.recovery import resume_retries, unfinished_runs
from kbo_pipeline.operate.runs.status import is_over, read_status
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.year import Year

NEWER = 250
"""Runs about other extracts that come after; more than anything ever looked at."""

COPIED = "9999-full"
STATUS = dg.DagsterRunStatus
FULL = ExtractKey(140, "full")
UPDATE = ExtractKey(141, "update")
BATCH = "0141-update-0002"
CANCELLED = {
    "kbo cancel": (STATUS.FAILURE, {EXTRACT_TAG: str(UPDATE), CANCELLED_TAG: ""}),
    "kbo cancel of a command": (STATUS.CANCELED, {EXTRACT_TAG: str(UPDATE), CANCELLED_TAG: ""}),
    "a sensor's run ended in the UI": (STATUS.CANCELED, {EXTRACT_TAG: str(UPDATE)}),
    "a run of the UI over the extract": (STATUS.CANCELED, {"dagster/partition": str(UPDATE)}),
    "a run of the UI over a batch": (STATUS.CANCELED, {"dagster/partition": BATCH}),
    "a run of the UI over batches": (
        STATUS.CANCELED,
        {RANGE_START_TAG: BATCH, RANGE_END_TAG: "0141-update-0003"},
    ),
}
READING: dict[str, tuple[str, tuple[str, ...]]] = {
    **{job: (job, ()) for job in (EXPORT_JOB, SEARCH_JOB, VERIFY_JOB)},
    "an asset in the UI": ("__ASSET_JOB", ("parquet_export",)),
    "several in the UI": ("__ASSET_JOB", ("full_verification", "search_index")),
}
"""Runs that only read: their job, and their assets where the UI chose them."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """One PostgreSQL for all tests of this file."""
    with Pipeline(tmp_path_factory.mktemp("data")).instance() as instance:
        yield instance


@pytest.fixture
def instance(shared: dg.DagsterInstance) -> Iterator[dg.DagsterInstance]:
    """A published Full and a staged Update, of which nothing is applied."""
    year = Year(shared, batches=3)
    year.import_extract(FULL)
    year.import_extract(UPDATE, ["stage_extract"])
    year.write()
    yield shared
    with runs_table(shared) as connection:
        connection.execute(
            text("DELETE FROM runs WHERE run_id NOT IN (SELECT run_id FROM event_logs)")
        )
    for run in shared.get_runs():
        shared.delete_run(run.run_id)
    for name in ("kbo_extracts", "kbo_batches"):
        for partition in shared.get_dynamic_partitions(name):
            shared.delete_dynamic_partition(name, partition)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("KBO_DATA_DIR", str(tmp_path / "data"))
    return load_settings()


def add(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    tags: dict[str, str],
    job: str = "apply_batches",
    assets: Sequence[str] = (),
) -> dg.DagsterRun:
    """Adds a run; an empty `kbo/cancelled` becomes its own id."""
    selection = frozenset(map(dg.AssetKey, assets)) or None
    run = instance.add_run(dg.DagsterRun(job, status=status, tags=tags, asset_selection=selection))
    if tags.get(CANCELLED_TAG) == "":
        instance.add_run_tags(run.run_id, {CANCELLED_TAG: run.run_id})
    return run


def add_newer(instance: dg.DagsterInstance, job: str = "apply_batches") -> None:
    """Adds failed runs about other extracts: copies of one, made by PostgreSQL."""
    tags = {EXTRACT_TAG: COPIED, MAX_RETRIES_TAG: "0"}
    run = add(instance, STATUS.FAILURE, tags, job)
    copies = """
        WITH copies AS (
            SELECT gen_random_uuid()::text AS run_id, lpad(n::text, 4, '0') || '-full' AS extract
            FROM generate_series(1, :newer) AS n
        ), made AS (
            INSERT INTO runs (run_id, pipeline_name, status, run_body)
            SELECT c.run_id, pipeline_name, status,
                replace(replace(run_body, :run_id, c.run_id), :copied, c.extract)
            FROM runs CROSS JOIN copies AS c WHERE runs.run_id = :run_id
        )
        INSERT INTO run_tags (run_id, key, value)
        SELECT c.run_id, key, CASE WHEN value = :copied THEN c.extract ELSE value END
        FROM run_tags CROSS JOIN copies AS c WHERE run_tags.run_id = :run_id
    """
    values = {"newer": NEWER, "run_id": run.run_id, "copied": COPIED}
    with runs_table(instance) as connection:
        connection.execute(text(copies), values)
    assert instance.get_runs_count(dg.RunsFilter(job_name=job)) > NEWER


def runs_table(instance: dg.DagsterInstance) -> AbstractContextManager[Connection]:
    assert isinstance(instance.run_storage, SqlRunStorage)
    return instance.run_storage.connect()


@pytest.mark.parametrize("way", CANCELLED)
def test_a_cancelled_extract_stays_so_until_somebody_takes_it_up(
    instance: dg.DagsterInstance, settings: Settings, way: str
) -> None:
    status, tags = CANCELLED[way]
    add(instance, status, {**tags, MAX_RETRIES_TAG: "0"})
    add_newer(instance)
    progress = Progress(instance)
    assert progress.cancelled == {UPDATE}
    assert progress.next_to_apply == UPDATE
    with dg.build_sensor_context(instance=instance) as context:
        waits = apply_when_staged(context)
    assert isinstance(waits, dg.SkipReason)
    assert waits.skip_message == f"{UPDATE} is cancelled; kbo retry {UPDATE} continues it"
    assert not due._is_startable(settings, progress, UPDATE)
    found = read_status(instance, settings, UPDATE)
    assert (found.status, is_over(instance, found)) == ("cancelled", True)
    said = list(dagster_checks.check_extracts(Installation(settings, instance, None, tuple)))
    assert any(finding.text.startswith("cancelled: it waits") for finding in said)
    note_cancelled(instance, settings)  # there is no register in which it could be noted

    add(instance, STATUS.NOT_STARTED, {EXTRACT_TAG: str(UPDATE)})
    assert Progress(instance).cancelled == set()
    alerts = due_alerts(instance, settings, 0.0)
    assert not [a for a in alerts if a.extract == str(UPDATE)]  # though a cancelled run has failed


def test_where_no_run_is_known_nothing_is_said_of_any(
    shared: dg.DagsterInstance, settings: Settings
) -> None:
    progress = Progress(shared)
    assert (progress.newest_runs, progress.cancelled, progress.staging_failures) == ({}, set(), {})
    assert progress.newest_run(UPDATE) is None
    assert runs_about(shared, [UPDATE]) == runs_about(shared, []) == []
    assert resume_retries(shared, settings) == []
    assert due_alerts(shared, settings, 0.0) == []


def test_a_command_that_was_stopped_cancels_nothing(instance: dg.DagsterInstance) -> None:
    add(instance, STATUS.CANCELED, {EXTRACT_TAG: str(UPDATE), **OWN_RUN})
    add_newer(instance)
    assert Progress(instance).cancelled == set()


def test_failed_stagings_are_counted_however_many_of_others_came_after(
    instance: dg.DagsterInstance,
) -> None:
    bad = ExtractKey(142, "update")
    instance.add_dynamic_partitions("kbo_extracts", [str(bad)])
    for tags in ({EXTRACT_TAG: str(bad)}, {"dagster/partition": str(bad)}):
        add(instance, STATUS.FAILURE, tags, "stage_extract")
    add_newer(instance, "stage_extract")
    assert {key: len(ends) for key, ends in Progress(instance).staging_failures.items()} == {bad: 2}


def test_what_is_to_be_retried_is_found_behind_newer_failures_and_by_the_runs_own_mark(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry inherits the tags of the run before, also the mark that this was cancelled."""

    def failed(number: int, tags: dict[str, str]) -> str:
        of = {EXTRACT_TAG: f"{number:04d}-update"}
        run = add(instance, STATUS.STARTING, {**of, **tags})
        instance.report_run_failed(run)
        return run.run_id

    forgotten = failed(241, {})
    inherited = failed(242, {CANCELLED_TAG: "the id of the run before"})
    cancelled = failed(243, {CANCELLED_TAG: ""})
    add_newer(instance)
    monkeypatch.setattr(recovery, "_FORGOTTEN_SECONDS", -1.0)
    assert {*resume_retries(instance, settings)} == {forgotten, inherited}
    run = instance.get_run_by_id(cancelled)
    assert run is not None and run.tags[WILL_RETRY_TAG] == "true"  # Dagster would have


def test_a_failed_import_and_a_rollback_are_told_however_many_runs_came_after(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    tags = {"dagster/partition": BATCH, MAX_RETRIES_TAG: "0"}
    run = add(instance, STATUS.FAILURE, tags, "__ASSET_JOB", ASSETS_OF_JOBS["apply_batches"])
    add_newer(instance, ROLLBACK_JOB)
    for job, assets in READING.values():
        tags = {PARTITION_TAG: str(UPDATE), MAX_RETRIES_TAG: "0"}
        add(instance, STATUS.FAILURE, tags, job, assets)
    assert read_status(instance, settings, UPDATE).status == "failed"
    (alert,) = due_alerts(instance, settings, 0.0)
    assert (alert.extract, alert.stage) == (str(UPDATE), "apply_batches")
    said = list(dagster_checks.check_failed_runs(Installation(settings, instance, None, tuple)))
    assert any(finding.text.startswith("apply_batches failed: ") for finding in said)
    log, line = alert_log(settings), f"ALERT failed ({UPDATE}, apply_batches): "
    log.mkdir(parents=True)  # where no file can be written
    assert alert_tick(instance).startswith(line)
    assert f"{log}: cannot be written" in alert_tick(instance)
    log.rmdir()
    assert alert_tick(instance).startswith(line)
    assert line in log.read_text()
    assert alert_tick(instance).startswith(f"sent before: {line}")
    assert len(log.read_text().splitlines()) == 1
    assert [found.run_id for found in import_runs(instance, [UPDATE], [STATUS.FAILURE])] == [
        run.run_id
    ]
    assert len(runs_about(instance, [UPDATE], [STATUS.FAILURE])) == 1 + len(READING)

    add(instance, STATUS.SUCCESS, {EXTRACT_TAG: str(UPDATE)}, ROLLBACK_JOB)
    add_newer(instance)
    found = read_status(instance, settings, UPDATE)
    assert found.words == f"rolled back; kbo retry {UPDATE} imports it again"


@pytest.mark.parametrize(
    "status", [STATUS.STARTED, STATUS.SUCCESS, STATUS.FAILURE, STATUS.CANCELED]
)
@pytest.mark.parametrize("kind", READING)
def test_a_run_that_only_reads_does_not_change_where_an_extract_stands(
    instance: dg.DagsterInstance, settings: Settings, kind: str, status: dg.DagsterRunStatus
) -> None:
    def read() -> None:
        for tags in ({EXTRACT_TAG: str(UPDATE)}, {PARTITION_TAG: str(UPDATE)}):
            add(instance, status, tags, *READING[kind])

    read()
    assert read_status(instance, settings, UPDATE).status == "pending"
    assert Progress(instance).cancelled == set()
    assert unfinished_runs(instance, UPDATE) == []
    add(instance, STATUS.SUCCESS, {EXTRACT_TAG: str(UPDATE)}, ROLLBACK_JOB)
    read()
    found = read_status(instance, settings, UPDATE)
    assert found.words == f"rolled back; kbo retry {UPDATE} imports it again"
    assert is_over(instance, found)
    assert findings(instance, settings) == ["was rolled back"]
    assert due_alerts(instance, settings, 0.0) == []
    run = add(instance, STATUS.CANCELED, {EXTRACT_TAG: str(UPDATE)})
    read()
    assert read_status(instance, settings, UPDATE).status == "cancelled"
    assert Progress(instance).cancelled == {UPDATE}
    newest = Progress(instance).newest_run(UPDATE)
    assert newest is not None and newest.run_id == run.run_id
    with pytest.raises(NotReadyError, match="cancelled already"):
        cancel_extract(instance, settings, UPDATE)


def test_a_published_extract_is_not_cancelled_by_what_reads_it(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    for job, assets in READING.values():
        add(instance, STATUS.STARTED, {EXTRACT_TAG: str(FULL)}, job, assets)
    with pytest.raises(NotReadyError, match="published: nothing is at work; nothing was done"):
        cancel_extract(instance, settings, FULL)
    assert len(runs_about(instance, [FULL], [STATUS.STARTED])) == len(READING)


def test_what_is_forgotten_is_retried_whatever_reads_meanwhile(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_FORGOTTEN_SECONDS", -1.0)
    failed = add(instance, STATUS.STARTING, {EXTRACT_TAG: "0241-update"})
    read = add(instance, STATUS.STARTING, {EXTRACT_TAG: "0241-update"}, EXPORT_JOB)
    for run in (failed, read):
        instance.report_run_failed(run)
    assert {*resume_retries(instance, settings)} == {failed.run_id, read.run_id}


def test_what_an_asset_of_the_ui_makes_says_whether_its_run_imports() -> None:
    def of_ui(*assets: str) -> dg.DagsterRun:
        return dg.DagsterRun("__ASSET_JOB", asset_selection=frozenset(map(dg.AssetKey, assets)))

    assert imports(of_ui("enterprise")) and imports(of_ui("search_index", "published_extract"))
    assert imports(dg.DagsterRun("__ASSET_JOB"))  # of all assets
    assert not imports(of_ui("search_index")) and not imports(of_ui("legal_forms"))
    assert imports(dg.DagsterRun("stage_extract")) and not imports(dg.DagsterRun("compact_lake"))


def findings(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """What `kbo doctor` says of extracts and failed runs that is wrong."""
    installation = Installation(settings, instance, None, tuple)
    checks = (dagster_checks.check_extracts, dagster_checks.check_failed_runs)
    said = [finding for check in checks for finding in check(installation)]
    return [finding.text for finding in said if finding.severity != "ok"]


def alert_tick(instance: dg.DagsterInstance) -> str:
    with dg.build_sensor_context(instance=instance) as context:
        skipped = alert_sensor(context)
    assert isinstance(skipped, dg.SkipReason)
    return str(skipped.skip_message)


@pytest.mark.parametrize("job", ASSETS_OF_JOBS)
def test_runs_of_the_ui_are_called_after_the_job_with_their_assets(job: str) -> None:
    def called(assets: list[str]) -> str:
        selection = frozenset(map(dg.AssetKey, assets))
        return job_of(dg.DagsterRun("__ASSET_JOB", asset_selection=selection))

    assets = ASSETS_OF_JOBS[job]
    assert called(assets) == called(assets[:1]) == job
    assert called([*assets, "another"]) == "materialize"
    assert job_of(dg.DagsterRun("__ASSET_JOB")) == "materialize"
    assert job_of(dg.DagsterRun(job)) == job


KEYS = [ExtractKey(number, kind) for number in (9, 140, 9999, 10000) for kind in ("update", "full")]


def test_extracts_and_batches_are_in_the_order_of_importing() -> None:
    for seed in range(20):
        shuffled = random.Random(seed).sample(KEYS, len(KEYS))
        assert sorted(shuffled) == KEYS
        batches = [BatchKey(key, number) for key in shuffled for number in (10, 2)]
        assert sorted(batches) == [BatchKey(key, number) for key in KEYS for number in (2, 10)]
    assert max(KEYS) == ExtractKey(10000, "full")
    assert KEYS[0] < KEYS[1] <= KEYS[1] and not KEYS[1] > KEYS[2]


def test_zips_in_the_inbox_are_in_the_order_of_importing(tmp_path: Path) -> None:
    names = [
        "KboOpenData_0140_2025_10_05_Update.zip",
        "KboOpenData_0140_2025_10_05_Full.zip",
        "KboOpenData_0141_2025_10_06_Update.zip",
        "a.zip",
        "b.zip",
    ]
    for order in itertools.permutations(names):
        dropped = [InboxFile(tmp_path / name, 0, (0, 0, 0, 0)) for name in order]
        assert [one.path.name for one in in_number_order(dropped)] == names


@pytest.mark.parametrize(
    ("published", "given", "order"),
    [
        (None, "0140-full 0140-update", "0140-full 0140-update"),
        (None, "0140-full 0140-update 0141-full 0141-update", None),
        ("0139-full", "0140-full 0140-update 0141-full", "0140-update 0140-full 0141-full"),
        ("0140-update", "0142-full 0142-update 0143-update", "0142-full 0142-update 0143-update"),
        ("0140-full", "0140-update 0139-full 0141-update", "0139-full 0140-update 0141-update"),
        ("0140-full", "", ""),
    ],
)
def test_of_one_number_what_follows_is_imported_first(
    published: str | None, given: str, order: str | None
) -> None:
    if order is None:
        order = "0140-full 0140-update 0141-update 0141-full"
    newest = ExtractKey.parse(published) if published else None
    for keys in itertools.permutations(map(ExtractKey.parse, given.split())):
        assert " ".join(map(str, import_order(keys, newest))) == order


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_full_and_an_update_of_one_number_are_imported_by_one_command(tmp_path: Path) -> None:
    sample = Sample(enterprises=50, seed=4, first_number=139)
    zips = [
        write(tmp_path / "zips", number)
        for number in (141, 140)
        for write in (sample.write_full, sample.write_update)
    ]
    said = Pipeline(tmp_path / "data").kbo("import", *zips).stdout.splitlines()
    assert [line.split(" in ")[0] for line in said] == [
        "0140-full: published",
        "0140-update: already published: nothing to do",
        "0141-update: published",
        "0141-full: already published: nothing to do",
    ]
