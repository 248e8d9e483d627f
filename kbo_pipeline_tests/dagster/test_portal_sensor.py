"""What the portal sensor says and starts, tick by tick: real HTTP, real PostgreSQL, no daemon."""

import dataclasses
import datetime
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.definitions import defs
from kbo_pipeline.defs.sensors import due
from kbo_pipeline.defs.sensors.due import kbo_extract_sensor
from kbo_pipeline.defs.sensors.upkeep import alert_sensor
from kbo_pipeline.operate.markers import read_poll
from kbo_pipeline.operate.processes.programs import env_file_without_account
from kbo_pipeline.operate.repair.alerts import due_alerts
from kbo_pipeline.operate.runs.claims import claim_file
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.faulty_portal import Effect, Fault, FaultyPortal, Kind
from kbo_pipeline_tests.support.pipeline import Pipeline, forget_everything

SAMPLE = Sample(enterprises=50, seed=9)
FULL, UPDATE = "0140-full", "0141-update"


@dataclass
class World:
    """A portal, an instance, and the sensor between them."""

    portal: FaultyPortal
    offered: Path
    instance: dg.DagsterInstance
    patch: pytest.MonkeyPatch

    def set(self, settings: Mapping[str, str]) -> None:
        for name, value in settings.items():
            self.patch.setenv(name, value)

    def start_again(self) -> None:
        """A new code server: it has not asked yet, and has no session."""
        self.patch.setattr(due, "_asked_on_start", False)
        self.patch.setattr(due, "_portal", None)

    def tick(self) -> tuple[list[str], str]:
        """The extracts that a tick starts, and what it says."""
        with dg.build_sensor_context(instance=self.instance) as context:
            found = kbo_extract_sensor(context)
        if isinstance(found, dg.SkipReason):
            return [], str(found.skip_message)
        assert isinstance(found, dg.SensorResult)
        started = [str(request.partition_key) for request in found.run_requests or []]
        (added,) = found.dynamic_partitions_requests or []
        assert list(added.partition_keys) == started
        return started, str(read_poll(self.instance))

    def let_time_pass(self) -> None:
        """Makes the next poll due now."""
        poll = read_poll(self.instance)
        assert poll is not None
        stored = json.dumps(dataclasses.asdict(dataclasses.replace(poll, next_at=0.0)))
        self.instance.run_storage.set_cursor_values({"kbo/poll": stored})

    def report(self, asset: str, key: str) -> None:
        """Notes that a partition of an asset is there."""
        self.instance.add_dynamic_partitions("kbo_extracts", [key])
        event = dg.AssetMaterialization(asset, partition=key)
        self.instance.report_runless_asset_event(event)

    def publish(self, key: str) -> None:
        """Notes that an extract is published."""
        self.report("published_extract", key)

    def stage(self, key: str) -> bool:
        """Runs what the sensor would start."""
        self.instance.add_dynamic_partitions("kbo_extracts", [key])
        job = defs.resolve_job_def("stage_extract")
        tags = {"kbo/extract": key}
        return job.execute_in_process(
            instance=self.instance, partition_key=key, tags=tags, raise_on_error=False
        ).success


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ZIPs from which the portal's are taken."""
    directory = tmp_path_factory.mktemp("made")
    SAMPLE.write_full(directory, 140)
    SAMPLE.write_full(directory, 142)
    SAMPLE.write_update(directory, 141)
    SAMPLE.write_update(directory, 142)
    return directory


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """One PostgreSQL for all tests of this file; each takes back what it has stored."""
    pipeline = Pipeline(tmp_path_factory.mktemp("data"))
    with pipeline.instance() as instance:
        yield instance


@pytest.fixture
def world(
    tmp_path: Path, made: Path, shared: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    offered = tmp_path / "offered"
    offered.mkdir()
    for file in made.glob("*0140*"):
        shutil.copy(file, offered)
    with FaultyPortal(offered) as portal:
        world = World(portal, offered, shared, monkeypatch)
        world.set(
            {
                "KBO_DATA_DIR": str(tmp_path / "data"),
                "KBO_PORTAL_URL": portal.url,
                "KBO_USERNAME": "demo",
                "KBO_PASSWORD": "demo",
                "KBO_POLL_SECONDS": "3600",
            }
        )
        world.start_again()
        yield world
        forget_everything(shared)


def test_without_an_account_the_portal_is_not_asked(world: World) -> None:
    world.patch.delenv("KBO_PASSWORD")
    assert world.tick() == (
        [],
        "KBO_PASSWORD: not set, so the portal is not asked; the inbox alone works",
    )
    assert world.portal.requests == []


def test_the_portal_is_asked_on_start_and_then_when_it_is_time(world: World) -> None:
    started, said = world.tick()
    assert started == [FULL]
    assert said.startswith("0140-full due: the register is empty: 0140-full takes its place")
    for _ in range(3):
        started, said = world.tick()
        assert started == []
        assert "asks again in 59 min" in said or "asks again in 60 min" in said
    assert world.portal.count(Kind.LIST) == 1
    world.start_again()
    world.tick()
    assert world.portal.count(Kind.LIST) == 2


def test_the_session_is_kept_between_polls(world: World) -> None:
    for _ in range(3):
        world.tick()
        world.let_time_pass()
    assert (world.portal.count(Kind.LIST), world.portal.count(Kind.LOGIN)) == (3, 1)


def test_how_long_an_extract_stays_on_the_server_is_said(world: World) -> None:
    (file,) = world.offered.iterdir()
    day = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=29)
    file.rename(file.with_name(f"KboOpenData_0140_{day:%Y_%m_%d}_Full.zip"))
    _, said = world.tick()
    assert said.endswith("; 0140-full leaves the server in 2 days")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(Kind.LIST, Effect.PAGE, times=None), "even after a fresh login"),
        (Fault(Kind.LIST, Effect.STATUS, times=None, status=404), "answers 404"),
        (Fault(Kind.LIST, Effect.STATUS, times=None, status=500), "answers 500"),
        (Fault(Kind.LIST, Effect.CUT, times=None), "attempts failed"),
    ],
    ids=lambda value: getattr(value, "effect", None),
)
def test_a_portal_that_fails_is_told_and_the_next_tick_goes_on(
    world: World, fault: Fault, reason: str
) -> None:
    world.portal.add_fault(fault)
    started, said = world.tick()
    assert started == []
    assert reason in said
    world.portal.clear_faults()
    world.let_time_pass()
    assert world.tick()[0] == [FULL]


def test_a_portal_that_goes_on_failing_is_asked_less_and_less(world: World) -> None:
    world.portal.add_fault(Fault(Kind.LIST, Effect.STATUS, times=None, status=404))
    for failures, pause in enumerate((60, 120, 240, 480, 960, 1920, 3600, 3600), start=1):
        world.tick()
        poll = read_poll(world.instance)
        assert poll is not None and poll.is_failed and poll.failures == failures
        assert poll.next_at - poll.asked_at == pause
        world.let_time_pass()
    world.portal.clear_faults()
    assert world.tick()[0] == [FULL]
    poll = read_poll(world.instance)
    assert poll is not None and poll.failures == 0


def test_a_portal_that_is_not_there_is_told(world: World) -> None:
    world.set({"KBO_PORTAL_URL": "http://127.0.0.1:9/kbo-open-data"})
    started, said = world.tick()
    assert started == []
    assert "Connection refused; 3 attempts failed, try again later" in said


@pytest.mark.long
@pytest.mark.rare
def test_a_portal_that_keeps_us_waiting_does_not_use_up_the_time_of_a_tick(world: World) -> None:
    world.portal.add_fault(Fault(Kind.LIST, Effect.SILENCE, times=None, seconds=100.0))
    began = time.monotonic()
    started, _ = world.tick()
    assert started == []
    assert time.monotonic() - began < 45  # Dagster gives a tick 60 s


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_the_portal_asks_for_is_kept_over_a_restart(world: World, status: int) -> None:
    world.portal.add_fault(Fault(Kind.LIST, Effect.STATUS, status=status, retry_after="600"))
    _, said = world.tick()
    assert f"answers {status}; try again after " in said
    world.start_again()
    started, said = world.tick()
    assert started == []
    assert "asks again in 10 min" in said or "asks again in 9 min" in said
    assert world.portal.count(Kind.LIST) == 1


def test_a_refused_account_is_told_and_not_asked_for_again(world: World) -> None:
    world.set({"KBO_PASSWORD": "wrong-as-ever"})
    for _ in range(5):
        started, said = world.tick()
        assert started == []
        assert "the portal refuses the account: the login leads to /kbo-open-data/login;" in (
            said.replace("it did at the last attempt", "the login leads to /kbo-open-data/login")
        )
        world.let_time_pass()
        world.start_again()
    assert world.portal.count(Kind.LOGIN) == 1
    (alert,) = due_alerts(world.instance, load_settings(), time.time())
    assert (alert.kind, alert.stage) == ("refused", "portal")


def test_a_code_server_keeps_no_account_of_env(tmp_path: Path) -> None:
    """Dagster puts `.env` over the environment, once: a change would not count."""
    (tmp_path / ".env").write_text("KBO_USERNAME=a\nKBO_PASSWORD=b\nHTTPS_PROXY=http://c\n")
    assert env_file_without_account(str(tmp_path)) == {"HTTPS_PROXY": "http://c"}


@pytest.mark.parametrize("is_started_again", [False, True])
def test_a_refused_account_is_asked_for_at_once_when_it_has_changed(
    world: World, is_started_again: bool
) -> None:
    world.set({"KBO_PASSWORD": "wrong-as-ever"})
    for _ in range(3):
        assert world.tick()[0] == []
    poll = read_poll(world.instance)
    assert poll is not None and poll.next_at - poll.asked_at >= 3590
    if is_started_again:
        world.start_again()
    world.set({"KBO_PASSWORD": "demo"})
    assert world.tick()[0] == [FULL]
    assert world.portal.count(Kind.LOGIN) == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Kind.LIST, Effect.LOGIN_PAGE, times=None),
        Fault(Kind.LIST, Effect.STATUS, times=None, status=403),
    ],
    ids=lambda fault: fault.effect,
)
def test_a_list_that_is_refused_right_after_a_login_is_asked_for_an_hour_later(
    world: World, fault: Fault
) -> None:
    world.portal.add_fault(fault)
    for _ in range(2):
        assert "the portal refuses the account" in world.tick()[1]
        world.let_time_pass()
    assert world.portal.count(Kind.LOGIN) == 1
    world.portal.clear_faults()
    memory = load_settings().work_dir / "portal-refused.json"
    kept = json.loads(memory.read_text())
    memory.write_text(json.dumps(kept | {"refused_at": kept["refused_at"] - 3601}))
    assert world.tick()[0] == [FULL]
    assert not memory.exists()


def test_an_extract_that_somebody_imports_is_left_to_them(world: World) -> None:
    key = ExtractKey.parse(FULL)
    with exclusive_lock(claim_file(load_settings(), key)):
        assert world.tick()[0] == []
    world.let_time_pass()
    assert world.tick()[0] == [FULL]


def test_what_is_staged_or_at_staging_is_not_started_again(world: World) -> None:
    assert world.tick()[0] == [FULL]
    assert world.stage(FULL)
    world.let_time_pass()
    assert world.tick()[0] == []


def test_a_zip_that_is_kept_is_used_when_the_portal_has_it_no_more(
    world: World, made: Path
) -> None:
    world.tick()
    assert world.stage(FULL)
    downloads = world.portal.count(Kind.DOWNLOAD)
    assert downloads == 1
    for file in world.offered.iterdir():
        file.unlink()
    for file in made.glob("*0142*"):
        shutil.copy(file, world.offered)
    world.instance.add_dynamic_partitions("kbo_extracts", [FULL])
    world.let_time_pass()
    _, said = world.tick()
    assert "0142-full" in said  # nothing is published yet: the newest Full is the shortest way
    for file in world.offered.iterdir():
        if "Full" in file.name:
            file.unlink()
    world.let_time_pass()
    _, said = world.tick()
    assert said.startswith("0140-full due: the register is empty: 0140-full takes its place; 0141")
    assert world.stage(FULL)
    assert world.portal.count(Kind.DOWNLOAD) == downloads  # sound, so not fetched again


def test_an_extract_that_fails_is_tried_with_pauses_and_then_bridged(
    world: World, made: Path
) -> None:
    (full,) = world.offered.iterdir()
    full.unlink()
    Core(load_settings().data_dir).import_zip(made / full.name)
    (update,) = made.glob("*0141*")
    (another,) = made.glob("*0142*Update*")
    shutil.copy(another, world.offered / update.name)
    assert world.tick()[0] == [UPDATE]
    for failures in (1, 2, 3):
        assert not world.stage(UPDATE)
        world.let_time_pass()
        started, said = world.tick()
        assert started == []  # it has failed less than a minute ago
        if failures < 3:
            assert said.startswith("0141-update due: follows 0140-full")
    assert "0141-update failed too often, and there is no Full above it" in said
    alerts = due_alerts(world.instance, load_settings(), time.time())
    assert sorted((alert.kind, alert.extract) for alert in alerts) == [
        ("failed", "0141-update"),
        ("gap", "0141-update"),
    ]
    assert "its meta.csv says 0142-update, not 0141-update" in alerts[0].error
    assert alerts[0].command == "fix the cause, then kbo retry 0141-update"
    for file in made.glob("*0142*Full*"):
        shutil.copy(file, world.offered)
    world.let_time_pass()
    started, said = world.tick()
    assert started == ["0142-full"]
    assert "0141-update failed too often: 0142-full takes its place" in said


def test_a_failure_is_told_once_it_is_certain_that_dagster_does_not_retry_it(world: World) -> None:
    def failed(**tags: str) -> str:
        tags = {"kbo/extract": FULL} | {name.replace("_", "/", 1): tags[name] for name in tags}
        status = dg.DagsterRunStatus.FAILURE
        run = dg.DagsterRun(job_name="stage_extract", status=status, tags=tags)
        return world.instance.add_run(run).run_id

    def told() -> int:
        return len(due_alerts(world.instance, load_settings(), time.time()))

    run = failed()  # Dagster's tag comes a moment after the status
    assert told() == 0
    world.instance.add_run_tags(run, {"dagster/will_retry": "true"})
    assert told() == 0
    world.instance.add_run_tags(run, {"dagster/will_retry": "false"})
    assert told() == 1
    failed(dagster_max_retries="0")  # one of a kbo command, which nobody retries
    assert told() == 2


def test_a_run_that_failed_because_somebody_cancelled_it_is_no_alert(world: World) -> None:
    world.instance.add_dynamic_partitions("kbo_extracts", [FULL])
    tags = {"kbo/extract": FULL, "dagster/will_retry": "false"}
    run = world.instance.add_run(
        dg.DagsterRun(job_name="stage_extract", status=dg.DagsterRunStatus.FAILURE, tags=tags)
    )
    (alert,) = due_alerts(world.instance, load_settings(), time.time())
    assert (alert.kind, alert.extract) == ("failed", FULL)
    world.instance.add_run_tags(run.run_id, {"kbo/cancelled": run.run_id})
    assert due_alerts(world.instance, load_settings(), time.time()) == []


def test_a_register_that_nothing_comes_to_is_stale(world: World) -> None:
    settings = load_settings()
    now = time.time()
    assert due_alerts(world.instance, settings, now) == []
    world.publish(FULL)
    assert due_alerts(world.instance, settings, now + 47 * 3600) == []
    for hours in (49, 500):
        (alert,) = due_alerts(world.instance, settings, now + hours * 3600)
        assert (alert.event, alert.kind) == ("stale:0140-full", "stale")
        assert f"0140-full has been the newest for {hours} hours" in alert.error
    with dg.build_sensor_context(instance=world.instance) as context:
        found = alert_sensor(context)
    assert isinstance(found, dg.SkipReason) and found.skip_message == "no alert is due"


def test_what_is_staged_above_what_was_rolled_back_waits_for_a_person(
    world: World, made: Path
) -> None:
    core = Core(load_settings().data_dir)
    for key, pattern in ((FULL, "*0140*"), (UPDATE, "*0141*")):
        core.import_zip(next(made.glob(pattern)))
        world.publish(key)
    core.rollback(ExtractKey.parse(UPDATE))
    world.instance.wipe_assets([dg.AssetKey("published_extract")])
    world.publish(FULL)
    world.report("import_staging_enterprise", "0142-update")

    def alert(seconds: float) -> list[str]:
        return [str(a) for a in due_alerts(world.instance, load_settings(), time.time() + seconds)]

    assert alert(0) == []
    assert alert(1000) == [
        "ALERT gap (0141-update, stage_extract): 0142-update is staged and waits for 0141-update,"
        " which was rolled back; kbo retry 0141-update imports it again, or import a Full above it"
    ]


def test_what_was_rolled_back_is_not_started_again_until_a_higher_full(
    world: World, made: Path
) -> None:
    core = Core(load_settings().data_dir)
    (full,) = made.glob("*0140*")
    (update,) = made.glob("*0141*")
    shutil.copy(update, world.offered)
    core.import_zip(full)
    core.import_zip(update)
    core.rollback(ExtractKey.parse(UPDATE))
    started, said = world.tick()
    assert started == []
    assert said == "0141-update was rolled back; kbo retry 0141-update imports it again"
    kinds = {alert.kind for alert in due_alerts(world.instance, load_settings(), time.time())}
    assert "gap" not in kinds
    for file in made.glob("*0142*"):
        shutil.copy(file, world.offered)
    world.let_time_pass()
    started, said = world.tick()
    assert started == ["0142-full"]
    assert "0141-update was rolled back: 0142-full takes its place" in said
