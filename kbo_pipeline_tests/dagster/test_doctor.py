"""`kbo doctor`: each thing that it looks at is broken once, for real, and it must say so."""

import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo

from kbo_pipeline.cli import main
from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.definitions import defs
from kbo_pipeline.operate.markers import Poll, add_lost, pause
from kbo_pipeline.operate.processes.start import start_lock
from kbo_pipeline.operate.repair import dagster_checks, doctor, findings
from kbo_pipeline.operate.repair.alerts import due_alerts
from kbo_pipeline.operate.repair.dagster_checks import Installation
from kbo_pipeline.operate.repair.doctor import diagnose
from kbo_pipeline.operate.repair.findings import Finding
from kbo_pipeline.operate.runs.claims import OWN_RUN, claim_file
from kbo_pipeline.operate.runs.progress import EXTRACT_TAG, REJECTED_ROWS, STAGED
from kbo_pipeline.read.index import MARK, build_index
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.pipeline import Pipeline, forget_everything
from kbo_pipeline_tests.support.zips import announcing

FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")
ZIP_NAME = "KboOpenData_0141_2025_10_06_Update.zip"
DAY = 86_400.0
STATUS = dg.DagsterRunStatus
NOT_RETRIED = {"dagster/max_retries": "0"}
SAMPLE = Sample(enterprises=50, seed=4)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("KBO_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return load_settings()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a published Full, to be copied."""
    directory = tmp_path_factory.mktemp("made")
    core = Core(directory)
    core.import_zip(SAMPLE.write_full(directory / "zips", 140))
    SAMPLE.write_update(directory / "zips", 141)
    return directory


@pytest.fixture
def published(settings: Settings, made: Path) -> Core:
    shutil.copytree(made, settings.data_dir, dirs_exist_ok=True)
    return Core(settings.data_dir)


class Recording(dict[str, Finding]):
    """The table of findings, and which of them the tests of this file have come upon."""

    produced: ClassVar[set[str]] = set()

    def __getitem__(self, name: str) -> Finding:
        self.produced.add(name)
        return super().__getitem__(name)


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "FINDINGS", Recording(findings.FINDINGS))


def bad(looked: Iterator[Finding]) -> list[tuple[str, str]]:
    """What is not ok: severity and subject; each must say what to do."""
    found = [finding for finding in looked if finding.severity != "ok"]
    assert all(finding.remedy for finding in found), found
    return [(finding.severity, finding.subject) for finding in found]


def only(looked: Iterator[Finding]) -> Finding:
    (finding,) = [finding for finding in looked if finding.severity != "ok"]
    assert finding.remedy
    assert len(finding.text.splitlines()) == len(finding.remedy.splitlines()) == 1
    return finding


def test_without_an_account_it_says_that_the_portal_is_not_asked(settings: Settings) -> None:
    assert bad(doctor.check_settings(settings)) == [("warning", "portal account")]
    whole = dataclasses.replace(settings, username="me", password="canary")
    assert bad(doctor.check_settings(whole)) == []
    assert "canary" not in str(list(doctor.check_settings(whole)))


def test_a_directory_that_is_none_is_an_error(settings: Settings) -> None:
    assert bad(doctor.check_directories(settings)) == []
    settings.downloads_dir.write_text("a file")
    found = only(doctor.check_directories(settings))
    assert (found.severity, found.subject) == ("error", "directories")
    assert str(settings.downloads_dir) in found.text


def test_a_disk_that_is_too_small_for_the_next_extract_is_an_error(
    settings: Settings, tmp_path: Path
) -> None:
    assert bad(doctor.check_disks(settings)) == []
    settings.downloads_dir.mkdir()
    length = shutil.disk_usage(tmp_path).free
    announcing(tmp_path, length).rename(settings.downloads_dir / ZIP_NAME)
    found = list(doctor.check_disks(settings))
    assert bad(iter(found)) == [("error", "disk")] * len(found)
    assert "one like 0141-update needs about" in found[0].text
    assert str(found[0].remedy).startswith("free ")
    (settings.downloads_dir / ZIP_NAME).write_text("no ZIP")
    assert bad(doctor.check_disks(settings)) == [("warning", "downloads")]


def test_kbo_start_that_does_not_run_and_a_pause_are_warnings(settings: Settings) -> None:
    found = only(doctor.check_start(settings))
    assert (found.severity, found.remedy) == ("warning", "kbo start")
    assert not settings.work_dir.exists()
    with exclusive_lock(start_lock(settings)):
        assert doctor.start_process(settings) == os.getpid()
        assert "no web UI answers" in only(doctor.check_start(settings)).text
    assert list(doctor.check_pause(settings)) == []
    pause(settings)
    assert only(doctor.check_pause(settings)).remedy == "kbo resume"


def test_a_sound_register_is_found_sound(settings: Settings, published: Core) -> None:
    found = [*doctor.check_published(settings), *doctor.check_register(settings)]
    assert {finding.severity for finding in found} == {"ok"}
    assert all("0140-full (1 extract), opens: " in finding.text for finding in found)
    with exclusive_lock(DuckDBFile(settings.register_file).lock):
        (finding,) = doctor.check_register(settings)
    assert finding.text == f"process {os.getpid()} is at work on it"


def test_a_damaged_register_is_an_error(settings: Settings, published: Core) -> None:
    settings.database_file.write_bytes(b"no DuckDB")
    assert only(doctor.check_published(settings)).severity == "error"
    settings.register_file.write_bytes(b"no DuckDB")
    found = only(doctor.check_register(settings))
    assert (found.severity, found.subject) == ("error", "register at work")
    assert str(found.remedy).endswith("kbo rebuild")


def test_a_register_that_another_program_has_open_is_an_error(
    settings: Settings, published: Core
) -> None:
    code = f"import duckdb; c = duckdb.connect({str(settings.register_file)!r}); print(1); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "1\n"
        found = only(doctor.check_register(settings))
        other.communicate("\n")
    assert f"PID {other.pid}" in found.text
    assert bad(doctor.check_register(settings)) == []


def test_a_register_at_work_that_is_gone_is_an_error(settings: Settings, published: Core) -> None:
    settings.register_file.unlink()
    assert "missing, although" in only(doctor.check_register(settings)).text


def test_what_others_can_read_is_a_warning(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.data_dir.chmod(0o755)
    assert only(doctor.check_privacy(settings)).remedy == f"chmod 700 {settings.data_dir}"
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("KBO_PASSWORD=canary")
    (tmp_path / ".env").chmod(0o644)
    found = only(doctor.check_secrets(settings))
    assert "KBO_PASSWORD" in found.text
    assert "canary" not in str(found)
    far = dataclasses.replace(settings, postgres_url="postgresql://me@far.example/db")
    assert bad(doctor.check_postgres_url(far)) == [("warning", "PostgreSQL")] * 2


def test_views_of_another_privacy_are_a_warning(settings: Settings, published: Core) -> None:
    other = dataclasses.replace(settings, privacy="legal-persons")
    found = only(doctor.check_published(other))
    assert (found.severity, found.subject) == ("warning", "views")
    assert "legal-persons" in found.text


def test_a_search_index_that_nobody_uses_is_a_warning(settings: Settings, published: Core) -> None:
    def why() -> str:
        found = only(doctor.check_search(settings))
        assert (found.severity, found.subject) == ("warning", "search index")
        assert "kbo index" in str(found.remedy)
        return found.text

    assert why() == f"{settings.search_dir}: there is no search index"
    build_index(settings)
    assert bad(doctor.check_search(settings)) == []
    mark = settings.search_dir / MARK
    content = json.loads(mark.read_text())
    mark.write_text(json.dumps(content | {"extract": "0139-full"}))
    assert "is of 0139-full, not 0140-full" in why()
    mark.write_text(json.dumps(content | {"format": "kbo_pipeline search 9999"}))
    assert "of another version" in why()
    mark.write_text(json.dumps(content))
    os.truncate(settings.search_dir / "meta.json", 1)
    assert "damaged: meta.json is not whole" in why()
    settings.database_file.unlink()
    assert list(doctor.check_search(settings)) == []


def test_leftovers_are_warnings(settings: Settings, published: Core) -> None:
    assert bad(doctor.check_leftovers(settings)) == []
    part = settings.database_file.with_name("kbo.duckdb.part")
    part.touch()
    assert bad(doctor.check_leftovers(settings)) == []
    os.utime(part, (time.time() - 2 * DAY,) * 2)
    assert "kbo.duckdb.part" in only(doctor.check_leftovers(settings)).text
    part.unlink()
    (settings.staging_dir / "0139-update.duckdb").touch()
    assert "0139-update.duckdb" in only(doctor.check_leftovers(settings)).text


def test_what_waits_in_the_inbox_for_a_person_is_a_warning(settings: Settings) -> None:
    assert bad(doctor.check_inbox(settings)) == []
    rejected = settings.inbox_dir / "rejected"
    rejected.mkdir(parents=True)
    for name in ("a.zip", "a.zip.txt"):
        (rejected / name).touch()
    assert "1 rejected: a.zip" in only(doctor.check_inbox(settings)).text
    foreign, waiting = settings.inbox_dir / "x.rar", settings.inbox_dir / "y.ZIP"
    foreign.touch()
    os.utime(foreign, (time.time() - 2 * DAY,) * 2)
    waiting.touch()
    assert bad(doctor.check_inbox(settings)) == [("warning", "inbox")] * 3
    with exclusive_lock(start_lock(settings)):  # kbo start will see to the ZIP
        assert bad(doctor.check_inbox(settings)) == [("warning", "inbox")] * 2


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """One PostgreSQL for all tests of this file; each takes back what it has stored."""
    with Pipeline(tmp_path_factory.mktemp("shared")).instance() as instance:
        yield instance


def sensors() -> Iterable[dg.SensorDefinition]:
    return defs.sensors or ()


class Bench:
    """An installation whose records the tests write, with or without `kbo start`."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings, self.instance = settings, instance
        self.is_run = False

    def look(self, check: Callable[[Installation], Iterator[Finding]]) -> Iterator[Finding]:
        """What a check finds now; a `kbo start` has run for as long as the machine."""
        pid = 1 if self.is_run else None
        return check(Installation(self.settings, self.instance, pid, sensors))

    def run(
        self, job: str, status: dg.DagsterRunStatus, key: ExtractKey, *tags: Mapping[str, str]
    ) -> str:
        every = {name: value for some in tags for name, value in some.items()}
        run = dg.DagsterRun(job, status=status, tags={EXTRACT_TAG: str(key), **every})
        return self.instance.add_run(run).run_id

    def materialize(self, asset: str, key: ExtractKey) -> None:
        self.instance.add_dynamic_partitions("kbo_extracts", [str(key)])
        event = dg.AssetMaterialization(asset, partition=str(key))
        self.instance.report_runless_asset_event(event)

    def stage(self, key: ExtractKey, batches: int = 2) -> None:
        self.materialize("import_staging_enterprise", key)
        names = [f"{key}-{number:04d}" for number in range(1, batches + 1)]
        self.instance.add_dynamic_partitions("kbo_batches", names)

    def poll(self, poll: Poll) -> None:
        stored = json.dumps(dataclasses.asdict(poll))
        self.instance.run_storage.set_cursor_values({"kbo/poll": stored})


@pytest.fixture
def bench(settings: Settings, shared: dg.DagsterInstance) -> Iterator[Bench]:
    yield Bench(settings, shared)
    forget_everything(shared)
    for key in shared.get_dynamic_partitions("kbo_batches"):
        shared.delete_dynamic_partition("kbo_batches", key)


def test_what_does_not_agree_is_an_error(bench: Bench, published: Core) -> None:
    found = only(bench.look(doctor.check_ledger))
    assert (found.severity, found.remedy) == ("error", "kbo start or kbo rebuild repairs it")
    assert found.text == "0140-full: published, but unknown to Dagster: recorded there"
    bench.materialize("published_extract", FULL)
    assert bad(bench.look(doctor.check_ledger)) == []
    with exclusive_lock(DuckDBFile(bench.settings.register_file).lock):
        assert bad(bench.look(doctor.check_ledger)) == [("warning", "ledger")]
    add_lost(bench.settings, [UPDATE])
    assert only(bench.look(doctor.check_ledger)).remedy == "kbo retry 0141-update"
    damaged = bytearray(published.database.read_bytes())
    damaged[300_000] ^= 1
    published.database.write_bytes(damaged)
    texts = [finding.text for finding in bench.look(doctor.check_ledger)]
    assert "the checksum of 262144 bytes at 274432 is wrong" in texts[1]


def test_files_that_were_put_aside_are_warnings(settings: Settings, published: Core) -> None:
    aside = settings.work_dir / "damaged" / "kbo.duckdb"
    aside.parent.mkdir()
    aside.touch()
    assert str(aside) in only(doctor.check_leftovers(settings)).text


def test_a_silent_daemon_is_an_error(bench: Bench) -> None:
    assert list(bench.look(dagster_checks.check_daemons)) == []
    bench.is_run = True
    assert "SENSOR" in only(bench.look(dagster_checks.check_daemons)).text
    error = SerializableErrorInfo("it hurts\nhere", [], None)
    for name in bench.instance.get_required_daemon_types():
        errors = [error] if name == "SENSOR" else []
        bench.instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), name, "1", errors))
    assert only(bench.look(dagster_checks.check_daemons)).text == "SENSOR: it hurts"
    bench.instance.wipe_daemon_heartbeats()


def test_a_sensor_that_was_stopped_fails_or_is_silent_is_told(bench: Bench) -> None:
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("kbo_pipeline"), "__it__")
    instance, now = bench.instance, time.time()
    assert list(bench.look(dagster_checks.check_sensors)) == []
    states = {}
    for name in (
        *("kbo_extract_sensor", "inbox_sensor", "apply_when_staged", "publish_when_applied"),
        *(
            "alert_sensor",
            "retention_sensor",
            "verify_when_at_hand",
            "proof_sensor",
            "index_when_published",
        ),  # not what is off by itself
    ):
        states[name] = instance.add_instigator_state(
            InstigatorState(
                RemoteInstigatorOrigin(repository, name),
                InstigatorType.SENSOR,
                InstigatorStatus.DECLARED_IN_CODE,
                SensorInstigatorData(last_tick_timestamp=now),
            )
        )
    bench.is_run = True
    assert bad(bench.look(dagster_checks.check_sensors)) == []
    state = states["inbox_sensor"]
    tick = TickData(
        state.instigator_origin_id,
        "inbox_sensor",
        InstigatorType.SENSOR,
        TickStatus.FAILURE,
        now,
        error=SerializableErrorInfo("no inbox\nTraceback", [], None),
        selector_id=state.selector_id,
    )
    instance.create_tick(tick)
    found = only(bench.look(dagster_checks.check_sensors))
    assert found.severity == "error"
    assert found.text.startswith("inbox_sensor failed at ")
    assert found.text.endswith(": no inbox")
    instance.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))
    found = only(bench.look(dagster_checks.check_sensors))
    assert (found.severity, found.text) == ("warning", "inbox_sensor was stopped by hand")
    instance.update_instigator_state(state.with_status(InstigatorStatus.DECLARED_IN_CODE))
    alerting = states["alert_sensor"]
    silent = SensorInstigatorData(last_tick_timestamp=now - 1000)
    instance.update_instigator_state(alerting.with_data(silent))
    texts = [finding.text for finding in bench.look(dagster_checks.check_sensors)]
    assert any(text.startswith("alert_sensor has not run since ") for text in texts)
    for state in states.values():
        instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)


def test_runs_whose_process_has_died_are_told(bench: Bench) -> None:
    locks = bench.settings.work_dir / "runs"
    locks.mkdir(parents=True)
    dead = bench.run("apply_batches", STATUS.STARTED, FULL)
    (locks / f"{dead}.lock").write_text("1")
    with exclusive_lock(locks / f"{dead}.lock"):
        assert bad(bench.look(dagster_checks.check_stuck_runs)) == []
    found = only(bench.look(dagster_checks.check_stuck_runs))
    assert (found.severity, found.subject, found.remedy) == ("error", "0140-full", "kbo start")
    bench.is_run = True
    assert only(bench.look(dagster_checks.check_stuck_runs)).severity == "warning"
    bench.instance.delete_run(dead)
    bench.run("apply_batches", STATUS.STARTED, FULL, OWN_RUN)
    with exclusive_lock(claim_file(bench.settings, FULL)):
        assert bad(bench.look(dagster_checks.check_stuck_runs)) == []
    assert only(bench.look(dagster_checks.check_stuck_runs)).remedy == "kbo retry 0140-full"


def test_a_run_that_waits_too_long_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run("stage_extract", STATUS.NOT_STARTED, FULL)
    assert bad(bench.look(dagster_checks.check_stuck_runs)) == []
    monkeypatch.setattr(dagster_checks, "_QUEUED_SECONDS", -1.0)
    assert "waiting in the queue" in only(bench.look(dagster_checks.check_stuck_runs)).text
    pause(bench.settings)
    assert only(bench.look(dagster_checks.check_stuck_runs)).remedy == "kbo resume"


def test_a_failed_run_is_an_error_until_somebody_takes_it_up(bench: Bench) -> None:
    bench.materialize("published_extract", FULL)
    bench.stage(UPDATE)
    bench.run("apply_batches", STATUS.FAILURE, FULL, NOT_RETRIED)  # published since
    failed = bench.run("apply_batches", STATUS.FAILURE, UPDATE)
    assert list(bench.look(dagster_checks.check_failed_runs)) == []  # Dagster may retry it
    bench.instance.add_run_tags(failed, {"dagster/will_retry": "false"})
    found = only(bench.look(dagster_checks.check_failed_runs))
    assert (found.severity, found.subject) == ("error", "0141-update")
    assert found.remedy == "fix the cause, then kbo retry 0141-update"
    taken_up = bench.run("apply_batches", STATUS.STARTED, UPDATE)
    assert list(bench.look(dagster_checks.check_failed_runs)) == []
    bench.instance.delete_run(taken_up)
    bench.run("rollback_extract", STATUS.FAILURE, FULL, NOT_RETRIED)
    texts = [finding.remedy for finding in bench.look(dagster_checks.check_failed_runs)]
    assert texts[0] == "fix the cause, then kbo rollback 0140-full"


def test_a_report_that_failed_is_a_warning_until_it_is_made(bench: Bench) -> None:
    bench.materialize("published_extract", FULL)
    bench.run("publish_extract", STATUS.FAILURE, FULL, NOT_RETRIED)
    found = only(bench.look(dagster_checks.check_failed_runs))
    assert (found.severity, found.subject) == ("warning", "0140-full")
    assert found.text.startswith("change_report failed: ")
    bench.materialize("change_report", FULL)
    assert list(bench.look(dagster_checks.check_failed_runs)) == []


def test_a_place_in_a_pool_that_a_run_has_left_taken_is_told(bench: Bench) -> None:
    storage = bench.instance.event_log_storage
    storage.initialize_concurrency_limit_to_default("register")
    run = bench.run("apply_batches", STATUS.STARTED, FULL)
    storage.claim_concurrency_slot("register", run, "step")
    assert list(bench.look(dagster_checks.check_pools)) == []
    ended = bench.run("apply_batches", STATUS.CANCELED, FULL)
    for run_id, says in ((ended, "which has ended"), ("gone", "which is not recorded")):
        storage.free_concurrency_slots_for_run(run)
        storage.claim_concurrency_slot("register", run_id, "step")
        found = only(bench.look(dagster_checks.check_pools))
        assert (found.severity, found.subject) == ("error", "pools")
        assert says in found.text
        run = run_id
    storage.free_concurrency_slots_for_run("gone")


def test_extracts_that_wait_for_a_person_are_told(bench: Bench) -> None:
    bench.materialize("published_extract", FULL)
    assert bad(bench.look(dagster_checks.check_extracts)) == []
    bench.stage(UPDATE)
    run = bench.run("stage_extract", STATUS.SUCCESS, UPDATE, OWN_RUN)
    found = only(bench.look(dagster_checks.check_extracts))
    assert (found.severity, found.subject) == ("warning", "0141-update")
    assert found.text == "0 of 2 batches are applied, and nothing is working on it"
    with exclusive_lock(claim_file(bench.settings, UPDATE)):
        assert bad(bench.look(dagster_checks.check_extracts)) == []
    bench.is_run = True
    assert bad(bench.look(dagster_checks.check_extracts)) == []  # the sensors take it up
    bench.instance.delete_run(run)
    bench.run("apply_batches", STATUS.CANCELED, UPDATE)
    assert only(bench.look(dagster_checks.check_extracts)).text.startswith("cancelled: ")
    bench.run("rollback_extract", STATUS.SUCCESS, UPDATE)
    assert only(bench.look(dagster_checks.check_extracts)).text == "was rolled back"


def test_an_extract_that_was_begun_and_rows_set_aside_are_warnings(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.materialize("published_extract", FULL)
    bench.instance.add_dynamic_partitions("kbo_extracts", [str(UPDATE)])
    bench.run("stage_extract", STATUS.SUCCESS, UPDATE, OWN_RUN)
    assert only(bench.look(dagster_checks.check_extracts)).text == "begun, but not staged"
    assert bad(bench.look(dagster_checks.check_rejected_rows)) == []
    metadata = {REJECTED_ROWS: 2}
    event = dg.AssetMaterialization(STAGED, partition=str(UPDATE), metadata=metadata)
    bench.instance.report_runless_asset_event(event)
    found = only(bench.look(dagster_checks.check_rejected_rows))
    assert found.text == "2 rows of its ZIP could not be read and were set aside"


def test_a_gap_below_what_is_staged_is_an_error(bench: Bench) -> None:
    bench.materialize("published_extract", FULL)
    bench.stage(ExtractKey(143, "update"))
    bench.run("stage_extract", STATUS.SUCCESS, ExtractKey(143, "update"))
    found = only(bench.look(dagster_checks.check_extracts))
    assert (found.severity, found.subject) == ("error", "0143-update")
    assert found.text == "0143-update is staged and waits for 0141-update"


@pytest.mark.parametrize(
    ("poll", "is_run", "severity", "says"),
    [
        (
            Poll(0, 2e9, "the portal refuses", is_failed=True, is_refused=True),
            True,
            "error",
            "correct",
        ),
        (Poll(0, 2e9, "0141-update is gone", gap="0141-update"), True, "error", "get its ZIP"),
        (Poll(0, 2e9, "answers 500", is_failed=True), True, "warning", "it is asked again at"),
        (Poll(0, 0, "0140-full is the newest"), True, "warning", "see the ticks"),
        (Poll(0, 0, "due", due=("0141-update",)), False, "warning", "kbo start imports"),
    ],
)
def test_what_the_last_poll_has_found_is_told(
    bench: Bench, poll: Poll, is_run: bool, severity: str, says: str
) -> None:
    bench.settings = dataclasses.replace(bench.settings, username="me", password="secret")
    assert bad(bench.look(dagster_checks.check_portal)) == []
    bench.poll(poll)
    bench.is_run = is_run
    found = only(bench.look(dagster_checks.check_portal))
    assert (found.severity, found.subject) == (severity, "portal")
    assert str(found.remedy).startswith(says)


def test_a_stale_register_is_a_warning(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.materialize("published_extract", FULL)
    assert list(bench.look(dagster_checks.check_freshness)) == []
    bench.settings = dataclasses.replace(bench.settings, stale_hours=0)
    assert only(bench.look(dagster_checks.check_freshness)).severity == "warning"


def write_proof(settings: Settings, days: int, rows_differing: int) -> None:
    settings.proofs_dir.mkdir(exist_ok=True)
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    content = {
        "published": "0141-update",
        "verified_at": moment.isoformat(),
        "rows_compared": 63,
        "rows_differing": rows_differing,
    }
    (settings.proofs_dir / "0141.json").write_text(json.dumps(content))


def test_a_register_that_differs_or_is_long_unproven_is_told(bench: Bench) -> None:
    assert list(bench.look(dagster_checks.check_proof)) == []
    write_proof(bench.settings, 9, 0)
    (fine,) = bench.look(dagster_checks.check_proof)
    assert (fine.severity, fine.text[:34]) == ("ok", "0141-update: equal to KBO's Full, ")
    write_proof(bench.settings, 10, 0)
    warned = only(bench.look(dagster_checks.check_proof))
    assert (warned.severity, warned.text) == (
        "warning",
        "not compared with KBO's Full for 10 days",
    )
    write_proof(bench.settings, 0, 4)
    differs = only(bench.look(dagster_checks.check_proof))
    assert differs.severity == "error"
    assert differs.text.startswith("0141-update: 4 rows differ from KBO's Full, compared on ")
    (alert,) = (a for a in due_alerts(bench.instance, bench.settings, 0.0) if a.kind == "differs")
    assert (alert.extract, alert.error) == ("0141-update", differs.text)
    (bench.settings.proofs_dir / "0141.json").write_text("{")
    with pytest.raises(StorageError, match=r"0141\.json: no proof can be read from it"):
        list(bench.look(dagster_checks.check_proof))


def test_a_look_that_fails_hides_no_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: Settings) -> Iterator[Finding]:
        raise ValueError("it hurts\nhere")

    monkeypatch.setitem(doctor._ON_DISK, "pause", broken)
    settings.staging_dir.mkdir()
    (settings.data_dir / "inbox").mkdir()
    (settings.inbox_dir / "rejected").symlink_to(settings.inbox_dir / "rejected")  # a loop
    settings.database_file.mkdir()
    found = {finding.subject: finding for finding in diagnose(settings, sensors)}
    assert found["published register"].severity == "error"
    assert found["pause"].text == "cannot be checked: ValueError: it hurts"
    assert found["PostgreSQL"].text.startswith("none yet")
    assert not settings.postgres_dir.exists()


def test_a_postgresql_that_does_not_answer_is_an_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://me:canary@127.0.0.1:9/db")
    *_, last = diagnose(load_settings(), sensors)
    assert (last.severity, last.subject) == ("error", "PostgreSQL")
    assert "canary" not in str(last)


def test_kbo_doctor_ends_with_0_for_warnings_and_with_1_for_errors(
    published: Core, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(settings.dagster_home))
    pipeline = Pipeline(settings.data_dir)
    with pipeline.instance() as instance:
        Bench(settings, instance).materialize("published_extract", FULL)
        shown = CliRunner().invoke(main.commands["doctor"], [])
        assert shown.exit_code == 0, shown.output
        for subject in ("PostgreSQL", "runs", "extracts", "disk", "register at work", "kbo start"):
            assert subject in shown.output
        assert shown.output.splitlines()[-1].startswith("errors: 0, warnings: ")
        tags = {EXTRACT_TAG: str(UPDATE), **NOT_RETRIED}
        instance.add_run(dg.DagsterRun("stage_extract", status=STATUS.FAILURE, tags=tags))
        done = pipeline.kbo("doctor", "--json", check=False)
    assert done.returncode == 1
    assert done.stderr == ""
    printed = json.loads(done.stdout)
    assert printed["source"]["extract"] == "0140-full"
    (error,) = [one for one in printed["data"] if one["severity"] == "error"]
    assert error["subject"] == "0141-update"
    assert error["remedy"] == "fix the cause, then kbo retry 0141-update"


def test_each_finding_of_the_table_was_produced_by_a_test_of_this_file(
    request: pytest.FixtureRequest,
) -> None:
    collected = {item.name.split("[")[0] for item in request.session.items}
    if not {name for name in globals() if name.startswith("test_")} <= collected:
        pytest.skip("only a part of this file is run")
    assert findings.FINDINGS.keys() == Recording.produced
