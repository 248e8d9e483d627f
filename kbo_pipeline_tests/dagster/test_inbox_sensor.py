"""What the inbox's sensor decides, tick by tick, on a real instance; and who else may be at it."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg
import pytest

import kbo_pipeline.defs.sensors.inbox as sensor_module
from kbo_pipeline.commands.runs import import_extract
from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.definitions import defs
from kbo_pipeline.defs.sensors.inbox import inbox_sensor
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.fetch.inbox import Inbox
from kbo_pipeline.operate.runs.claims import claim_file
from kbo_pipeline.operate.runs.partitions import register_extract
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.pipeline import Pipeline, materializations
from kbo_pipeline_tests.support.processes import at_once, wait_until
from kbo_pipeline_tests.support.server import running_server
from kbo_pipeline_tests.support.zips import write_extract

SAMPLE = Sample(enterprises=50, seed=11)
FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")


class Bench:
    """A data directory, its instance, and the sensor; the test is the daemon."""

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        self.pipeline = pipeline
        self.instance = instance
        self.inbox = Inbox(pipeline.directory / "inbox")
        self.inbox.prepare()

    def tick(self) -> tuple[list[dg.RunRequest], str]:
        """Evaluates the sensor: the runs it asks for, and else what it says."""
        with dg.build_sensor_context(instance=self.instance) as context:
            found = inbox_sensor(context)
        if isinstance(found, dg.SkipReason):
            assert found.skip_message is not None
            assert found.skip_message.isprintable()
            return [], found.skip_message
        assert isinstance(found, dg.SensorResult)
        return list(found.run_requests or ()), ""

    def request(self) -> dg.RunRequest:
        """Evaluates the sensor, which must ask for one run."""
        requests, message = self.tick()
        assert len(requests) == 1, message
        return requests[0]

    def says(self) -> str:
        """Evaluates the sensor, which must ask for no run."""
        requests, message = self.tick()
        assert requests == []
        return message

    def run(self, request: dg.RunRequest) -> bool:
        """Runs what the sensor asked for, as the daemon would."""
        register_extract(self.instance, ExtractKey.parse(str(request.partition_key)))
        done = defs.resolve_job_def("stage_extract").execute_in_process(
            instance=self.instance,
            partition_key=request.partition_key,
            run_config=dict(request.run_config),
            tags=dict(request.tags),
            raise_on_error=False,
        )
        return done.success

    def texts(self, directory: Path) -> Mapping[str, str]:
        return {file.name: file.read_text() for file in directory.glob("*.txt")}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, and not as being copied; a clock tick may be behind."""
    monkeypatch.setattr("kbo_pipeline.fetch.inbox.SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(sensor_module, "COPYING_SECONDS", -1.0)


@pytest.fixture
def bench(tmp_path: Path, impatient: None) -> Iterator[Bench]:
    pipeline = Pipeline(tmp_path / "data")
    with pipeline.instance() as instance:
        yield Bench(pipeline, instance)


@pytest.fixture(scope="module")
def idle_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with Pipeline(tmp_path_factory.mktemp("idle")).instance() as instance:
        yield instance


@pytest.fixture
def idle(
    tmp_path: Path,
    idle_instance: dg.DagsterInstance,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    """A bench for tests that run nothing: they share an instance."""
    pipeline = Pipeline(tmp_path / "data")
    monkeypatch.setenv("KBO_DATA_DIR", str(pipeline.directory))
    return Bench(pipeline, idle_instance)


def wrong_header(directory: Path) -> Path:
    """A sound ZIP that staging refuses."""
    return write_extract(directory, FULL, {}, members={"activity.csv": '"Wrong"\n"x"\n'})


@pytest.mark.long
def test_a_zip_goes_from_the_inbox_to_done(bench: Bench) -> None:
    assert "nothing there; drop ZIPs into" in bench.says()
    update = SAMPLE.write_update(bench.inbox.directory, 141)
    request = bench.request()
    assert request.partition_key == "0141-update"
    assert str(request.run_key).startswith("inbox:0141-update:")
    assert list(bench.inbox.directory.glob("*.zip")) == []
    assert "0141-update, whose run is being started" in bench.says()
    assert bench.run(request)
    assert "0141-update: the register is empty; import a Full first" in bench.says()

    full = SAMPLE.write_full(bench.inbox.directory, 140)
    assert bench.run(bench.request())
    said = bench.says()
    assert "0140-full, which is being applied" in said
    assert "0141-update for its turn after 0140-full" in said
    bench.pipeline.kbo("retry", "0140-full")
    bench.pipeline.kbo("retry", "0141-update")
    assert "done: " in bench.says()
    assert sorted(f.name for f in bench.inbox.done_dir.iterdir()) == [full.name, update.name]

    SAMPLE.write_full(bench.inbox.directory, 140)
    assert "done: " in bench.says()
    assert list(bench.texts(bench.inbox.done_dir).values()) == [
        "0140-full: published before it was dropped: nothing was done.\n"
    ]
    write_extract(bench.inbox.directory, FULL, {})
    write_extract(bench.inbox.directory, ExtractKey(139, "full"), {})
    write_extract(bench.inbox.directory, ExtractKey(145, "update"), {}).rename(
        bench.inbox.directory / "x.zip"
    )
    assert bench.request().partition_key == "0145-update"
    reasons = sorted(
        text.splitlines()[0] for text in bench.texts(bench.inbox.rejected_dir).values()
    )
    assert "0139-full: 0141-update is published" in reasons[0]
    assert "0140-full: published from another file" in reasons[1]


def test_a_zip_that_cannot_be_staged_is_put_aside_and_a_mended_one_is_taken(bench: Bench) -> None:
    bad = wrong_header(bench.inbox.directory)
    assert not bench.run(bench.request())
    assert "rejected: " in bench.says()
    reason, advice = bench.texts(bench.inbox.rejected_dir)[f"{bad.name}.txt"].splitlines()
    assert "activity.csv: line 1 (byte 0): the header must name" in reason
    assert "drop the ZIP into the inbox again" in advice
    assert list((bench.pipeline.directory / "downloads").glob("*.zip")) == []

    wrong_header(bench.inbox.directory)  # the very same once more is a new attempt
    assert not bench.run(bench.request())
    assert "rejected: " in bench.says()
    assert len(bench.texts(bench.inbox.rejected_dir)) == 2

    SAMPLE.write_full(bench.inbox.directory, 140)
    assert bench.run(bench.request())
    assert "0140-full, which is being applied" in bench.says()


def test_a_failure_that_may_pass_is_not_the_zips_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    SAMPLE.write_full(bench.inbox.directory, 140)
    first = bench.request()
    downloads = bench.pipeline.directory / "downloads"
    downloads.touch()  # no directory: nothing can be written there
    assert not bench.run(first)
    assert "0140-full to be staged again, after: " in bench.says()
    downloads.unlink()
    monkeypatch.setattr(sensor_module, "_PAUSE_SECONDS", 0.0)
    again = bench.request()
    assert again.run_key != first.run_key
    assert bench.run(again)
    assert "0140-full, which is being applied" in bench.says()


def test_a_claim_whose_run_never_came_is_taken_up_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    SAMPLE.write_full(bench.inbox.directory, 140)
    lost = bench.request()
    assert "whose run is being started" in bench.says()
    monkeypatch.setattr(sensor_module, "_inboxes", {})  # as after a restart
    monkeypatch.setattr(sensor_module, "_LOST_SECONDS", -1.0)
    request = bench.request()
    assert request.run_key != lost.run_key
    monkeypatch.setattr(sensor_module, "_LOST_SECONDS", 60.0)
    assert "whose run is being started" in bench.says()
    assert bench.run(request)
    assert "0140-full, which is being applied" in bench.says()


def test_twins_are_put_away(idle: Bench) -> None:
    file = SAMPLE.write_full(idle.inbox.directory, 140)
    same = idle.inbox.directory / "same.zip"
    same.write_bytes(file.read_bytes())
    write_extract(idle.inbox.directory, FULL, {}).rename(idle.inbox.directory / "same too.zip")
    assert idle.request().partition_key == "0140-full"
    (done,) = idle.texts(idle.inbox.done_dir).values()
    assert done == f"0140-full: the same ZIP was there already, as {file.name}.\n"
    (rejected,) = idle.texts(idle.inbox.rejected_dir).values()
    assert rejected.startswith(f"0140-full: another ZIP of it is being imported, {file.name}\n")


def test_what_another_process_imports_stays_where_it_is(idle: Bench) -> None:
    file = SAMPLE.write_full(idle.inbox.directory, 140)
    with exclusive_lock(claim_file(load_settings(), FULL)):
        assert "0140-full, which another process works on" in idle.says()
        assert file.exists()
    assert idle.request().partition_key == "0140-full"


def test_only_one_looks_through_the_inbox(idle: Bench) -> None:
    file = SAMPLE.write_full(idle.inbox.directory, 140)
    with exclusive_lock(load_settings().work_dir / "inbox.lock"):
        assert f"process {os.getpid()} is at work here" in idle.says()
    assert file.exists()


def test_a_half_copied_zip_waits_and_is_then_taken(
    idle: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensor_module, "COPYING_SECONDS", 30.0)
    content = SAMPLE.write_full(idle.pipeline.directory, 140).read_bytes()
    target = idle.inbox.directory / "KboOpenData_0140_2025_10_05_Full.zip"
    with target.open("wb") as out:
        out.write(content[: len(content) // 2])
        out.flush()
        assert "to be copied to its end" in idle.says()
        out.write(content[len(content) // 2 :])
    assert idle.request().partition_key == "0140-full"
    assert list(idle.inbox.rejected_dir.iterdir()) == []


def test_an_inbox_that_is_none_is_told(idle: Bench) -> None:
    for directory in (idle.inbox.processing_dir, idle.inbox.done_dir, idle.inbox.rejected_dir):
        directory.rmdir()
    idle.inbox.directory.rmdir()
    idle.inbox.directory.write_text("a file")
    assert "cannot be made" in idle.says()


EVALUATOR = """
import json, sys, time
import dagster as dg
from kbo_pipeline.defs.sensors.inbox import inbox_sensor
requested = []
with dg.DagsterInstance.get() as instance:
    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + 8
    while time.monotonic() < until:
        with dg.build_sensor_context(instance=instance) as context:
            found = inbox_sensor(context)
        if isinstance(found, dg.SensorResult):
            requested += [request.partition_key for request in found.run_requests]
        time.sleep(0.1)
print(json.dumps(requested))
"""


def test_two_daemons_on_one_directory_start_one_run_for_each_zip(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "data")
    inbox = Inbox(pipeline.directory / "inbox")
    inbox.prepare()

    def drop_zips() -> None:
        for number in range(141, 161):
            write_extract(inbox.directory, ExtractKey(number, "update"), {})

    home = {"DAGSTER_HOME": str(pipeline.directory / "dagster_home")}
    with pipeline.instance():
        requested = at_once(EVALUATOR, environment=pipeline.environment | home, prepare=drop_zips)
    keys = [f"{number:04d}-update" for number in range(141, 161)]
    assert sorted(requested[0] + requested[1]) == keys
    assert len(list(inbox.processing_dir.glob("*.zip"))) == 20


@pytest.mark.long
@pytest.mark.rare
def test_an_import_by_hand_of_a_zip_in_the_inbox_and_the_sensor_import_it_once(
    tmp_path: Path,
) -> None:
    pipeline = Pipeline(tmp_path / "data")
    pipeline.directory.mkdir()
    inbox = Inbox(pipeline.directory / "inbox")
    with running_server(pipeline) as server:
        file = SAMPLE.write_full(inbox.directory, 140)
        done = pipeline.kbo("import", file, check=False)
        (line,) = (done.stderr if done.returncode else done.stdout).splitlines()
        assert line.startswith("kbo: " if done.returncode else "0140-full: "), done
        assert not (done.stdout if done.returncode else done.stderr), done
        server.wait_for_run("publish_extract", "SUCCESS")
        wait_until((inbox.done_dir / file.name).exists, "the ZIP is in done/")
        assert len(server.runs("publish_extract")) == 1
        staged = [run for run in server.runs("stage_extract") if run["status"] == "SUCCESS"]
        assert len(staged) == 1, (done, server.runs("stage_extract"))
        with pipeline.instance() as instance:
            assert materializations(instance, "published_extract") == {"0140-full": 1}
    assert list(inbox.directory.glob("*.zip")) == []
    assert list(inbox.rejected_dir.iterdir()) == []


def test_an_import_by_hand_of_a_zip_that_the_inbox_has_taken_says_so(bench: Bench) -> None:
    file = SAMPLE.write_full(bench.inbox.directory, 140)
    extract = read_extract(file)
    request = bench.request()
    with pytest.raises(NotReadyError, match="has moved away meanwhile") as raised:
        import_extract(bench.instance, load_settings(), file, extract)
    assert len(str(raised.value).splitlines()) == 1
    assert bench.run(request)
