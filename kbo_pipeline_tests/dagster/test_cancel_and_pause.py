"""`kbo cancel`, "Terminate" in the UI, `kbo pause` and `kbo resume`: stop in order and go on."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import dagster as dg
import duckdb
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)

from kbo_pipeline.apply.register import open_register_to_write
from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock, is_locked
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.operate.markers import PAUSED
from kbo_pipeline.operate.runs.cancellation import cancel_extract, note_cancelled
from kbo_pipeline.operate.runs.claims import claim_file
from kbo_pipeline.operate.runs.progress import EXTRACT_TAG, Progress
from kbo_pipeline.operate.runs.status import failure_message, step_failure
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core, open_at_work
from kbo_pipeline_tests.support.disturbed import (
    EXTRACT,
    KBO,
    applied,
    check_published,
    instance,
    kbo_start,
    pipeline,
    undisturbed,
    wait_for_more,
    wait_until_published,
    zip_file,
)
from kbo_pipeline_tests.support.pipeline import Pipeline, materializations, run_status
from kbo_pipeline_tests.support.processes import Started, started, wait_until
from kbo_pipeline_tests.support.server import Server

__all__ = ["instance", "pipeline", "undisturbed", "zip_file"]  # fixtures

UPDATE = "0141-update"
SAMPLE = Sample(enterprises=60, seed=3)


def terminate(server: Server, run: dg.DagsterRun) -> None:
    found = server.query(
        "mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run.run_id
    )
    assert found["terminateRun"]["__typename"] == "TerminateRunSuccess"


def at_work(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    return [run for run in instance.get_runs() if not run.is_finished]


def check_cancelled(pipeline: Pipeline, instance: dg.DagsterInstance) -> int:
    """Some batches are applied, nothing is published, at work or taken; returns how many."""
    assert at_work(instance) == []
    (newest,) = instance.get_runs(limit=1)
    assert newest.status == dg.DagsterRunStatus.CANCELED
    assert instance.event_log_storage.get_concurrency_info("register").claimed_slots == []
    settings = load_settings(pipeline.environment)
    claimed = claim_file(settings, ExtractKey.parse(EXTRACT))
    # The minute's look takes it for an instant.
    wait_until(lambda: not is_locked(claimed), "a free claim")
    assert not pipeline.is_published
    status = json.loads(pipeline.kbo("status", EXTRACT, "--json").stdout)
    assert status["status"] == "cancelled"
    assert status["failed_batches"] == []
    assert status["error"] is None
    with (
        settings.register.sole_writer(60.0),  # the minute's look takes it
        open_at_work(settings.register) as register,
    ):
        assert register.execute("SELECT status FROM import_jobs").fetchall() == [("cancelled",)]
        batches = register.execute(
            "SELECT status, count(*) FROM import_job_batches GROUP BY status ORDER BY status"
        ).fetchall()
    to_come = ["pending"] if settings.register.file else []  # a lake has no such rows
    assert [name for name, _ in batches] == ["completed", *to_come]
    done = int(batches[0][1])
    assert done % 7 == 0
    assert status["overall"]["completed"] == done
    return done


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["kbo cancel", "terminateRun"])
def test_an_import_of_kbo_start_is_cancelled_and_goes_on_with_retry(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str, way: str
) -> None:
    SAMPLE.write_update(pipeline.directory / "downloads", 141)
    instance.add_dynamic_partitions("kbo_extracts", [UPDATE])
    with kbo_start(pipeline) as (process, server):
        server.launch("stage_extract", UPDATE)
        server.launch("stage_extract", EXTRACT)
        wait_for_more(instance, process)
        (run,) = at_work(instance)
        began_at = time.monotonic()
        if way == "kbo cancel":
            done = pipeline.kbo("cancel", EXTRACT)
            assert done.stdout == f"{EXTRACT}: cancelled; kbo retry {EXTRACT} continues it\n"
        else:
            terminate(server, run)
            wait_until(lambda: not at_work(instance), "the end of the run", process)
        print(f"{way}: took {time.monotonic() - began_at:.1f} s")
        assert run_status(instance, run.run_id) == dg.DagsterRunStatus.CANCELED
        event = step_failure(instance, run)
        assert event is not None and event.step_failure_data.error is not None
        assert event.step_failure_data.error.stack == []
        assert failure_message(event) == f"{EXTRACT}: stopped; kbo retry {EXTRACT} continues it"
        before = check_cancelled(pipeline, instance)
        wait_until(
            lambda: (
                server.ticks("apply_when_staged")[0]
                == f"{EXTRACT} is cancelled; kbo retry {EXTRACT} continues it"
            ),
            "what the sensor says",
            process,
        )
        time.sleep(6)  # one interval of the sensors: neither goes on, nor does the Update
        assert check_cancelled(pipeline, instance) == before
        nothing = pipeline.kbo("cancel", EXTRACT, check=False)
        assert nothing.returncode == 1
        assert (
            nothing.stderr
            == f"kbo: {EXTRACT}: cancelled already; kbo retry {EXTRACT} continues it\n"
        )
        retried = pipeline.kbo("retry", EXTRACT)
        assert retried.stdout.endswith("publication\n")
        check_published_first(pipeline, undisturbed)
        server.wait_for_run("publish_extract", "SUCCESS", count=2)  # the Update's turn has come
    assert len(materializations(instance, "published_extract")) == 2


def check_published_first(pipeline: Pipeline, undisturbed: str) -> None:
    """The Full is published; the Update may be at once after it."""
    with pipeline.read() as reader:
        if reader.execute("SELECT count(*) FROM import_jobs").fetchall() != [(1,)]:
            return
    check_published(pipeline, undisturbed)


def test_the_ledger_learns_of_a_run_that_was_ended_in_the_queue(
    pipeline: Pipeline, instance: dg.DagsterInstance, zip_file: Path
) -> None:
    settings = load_settings(pipeline.environment)
    core = Core(pipeline.directory)
    key = core.stage(zip_file).extract.key
    with core.applying(key) as (register, staged):
        register.apply(staged, staged.batches[0])

    def add(status: dg.DagsterRunStatus) -> str:
        tags = {EXTRACT_TAG: EXTRACT}
        return instance.add_run(dg.DagsterRun("apply_batches", status=status, tags=tags)).run_id

    def said() -> str | None:
        note_cancelled(instance, settings)
        with (
            duckdb.connect(":memory:") as connection,
            open_register_to_write(connection, settings.register) as register,
        ):
            return register.ledger.job_status(key)

    add(dg.DagsterRunStatus.CANCELED)
    with exclusive_lock(claim_file(settings, key)):
        assert said() == "processing"
    waiting = add(dg.DagsterRunStatus.NOT_STARTED)
    assert said() == "processing"
    instance.delete_run(waiting)
    assert said() == "cancelled"


def test_who_cancels_what_readers_have_already_is_told_so(
    pipeline: Pipeline, instance: dg.DagsterInstance, zip_file: Path
) -> None:
    Core(pipeline.directory).import_zip(zip_file)
    reporting = instance.add_run(
        dg.DagsterRun(
            "publish_extract", status=dg.DagsterRunStatus.NOT_STARTED, tags={EXTRACT_TAG: EXTRACT}
        )
    )
    with pytest.raises(NotReadyError, match="was published before it could be cancelled"):
        cancel_extract(instance, load_settings(pipeline.environment), ExtractKey.parse(EXTRACT))
    assert run_status(instance, reporting.run_id) == dg.DagsterRunStatus.CANCELED


def test_a_run_that_a_sensor_asks_for_during_the_cancel_is_cancelled_too(
    pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    origin = RemoteInstigatorOrigin(
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "all"), "publish_when_applied"
    )
    kind, status = InstigatorType.SENSOR, InstigatorStatus.RUNNING
    state = instance.add_instigator_state(
        InstigatorState(origin, kind, status, SensorInstigatorData())
    )
    tick = instance.create_tick(
        TickData(
            state.instigator_origin_id,
            state.name,
            kind,
            TickStatus.STARTED,
            time.time(),
            selector_id=state.selector_id,
        )
    )

    def add() -> str:
        tags = {EXTRACT_TAG: EXTRACT}
        not_started = dg.DagsterRunStatus.NOT_STARTED
        return instance.add_run(
            dg.DagsterRun("publish_extract", status=not_started, tags=tags)
        ).run_id

    first, key = add(), ExtractKey.parse(EXTRACT)
    with ThreadPoolExecutor() as pool:
        cancelling = pool.submit(cancel_extract, instance, load_settings(pipeline.environment), key)
        wait_until(lambda: key in Progress(instance).cancelled, "the mark")
        asked_for = add()
        time.sleep(1.0)
        assert not cancelling.done()
        instance.update_tick(tick.with_status(TickStatus.SUCCESS))
        cancelling.result(30)
    canceled = dg.DagsterRunStatus.CANCELED
    assert [run_status(instance, run) for run in (first, asked_for)] == [canceled, canceled]


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.rare
def test_a_new_run_in_the_ui_goes_on_with_what_was_cancelled(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    with kbo_start(pipeline) as (process, server):
        server.launch("stage_extract", EXTRACT)
        wait_for_more(instance, process)
        (run,) = at_work(instance)
        terminate(server, run)
        wait_until(lambda: not at_work(instance), "the end of the run", process)
        check_cancelled(pipeline, instance)
        found = server.query(
            "mutation($p: ReexecutionParams!) {"
            " launchRunReexecution(reexecutionParams: $p) { __typename } }",
            p={"parentRunId": run.run_id, "strategy": "ALL_STEPS"},
        )
        assert found["launchRunReexecution"]["__typename"] == "LaunchRunSuccess"
        wait_until_published(instance, process)
        check_published(pipeline, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.rare
def test_a_kbo_import_in_another_terminal_is_cancelled(
    pipeline: Pipeline, instance: dg.DagsterInstance, zip_file: Path, undisturbed: str
) -> None:
    with started(pipeline, *KBO, "import", zip_file) as process:
        wait_for_more(instance, process)
        pipeline.kbo("cancel", EXTRACT)
        assert process.popen.wait(30) == 1
        says = f"kbo: {EXTRACT}: cancelled; kbo retry {EXTRACT} continues it\n"
        assert process.output() == says
    check_cancelled(pipeline, instance)
    done = pipeline.kbo("import", zip_file)
    assert done.stdout.startswith(f"{EXTRACT}: published")
    check_published(pipeline, undisturbed)
    nothing = pipeline.kbo("cancel", EXTRACT, check=False)
    assert nothing.returncode == 1
    assert nothing.stderr == f"kbo: {EXTRACT}: published: nothing is at work; nothing was done\n"


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.timeout(600)
def test_nothing_moves_while_paused_and_all_goes_on_after_resume(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    with kbo_start(pipeline) as (process, server):
        server.launch("stage_extract", EXTRACT)
        wait_for_more(instance, process)
        assert pipeline.kbo("pause").stdout == f"{PAUSED}\n"
        assert pipeline.kbo("pause").stdout == f"{PAUSED}: nothing to do\n"
        before = standstill(instance, process)
        assert pipeline.kbo("status").stdout.splitlines()[0] == PAUSED
    with kbo_start(pipeline) as (process, server):  # all was killed: it is paused still
        assert process.says(f"{PAUSED}\n")
        wait_until(lambda: server.ticks("apply_when_staged"), "a tick", process)
        server.wait_for_run("apply_batches", "STARTED")
        assert standstill(instance, process) == before
        assert pipeline.kbo("resume").stdout == "resumed\n"
        assert pipeline.kbo("resume").stdout == "not paused: nothing to do\n"
        wait_until_published(instance, process)
    check_published(pipeline, undisturbed)


def standstill(instance: dg.DagsterInstance, process: Started) -> int:
    """How many batches are applied, once that no longer changes."""
    time.sleep(3)
    before = applied(instance)
    time.sleep(5)
    assert applied(instance) == before
    assert process.popen.poll() is None
    return before


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.rare
def test_kbo_import_waits_while_paused_and_says_so_once(
    pipeline: Pipeline, instance: dg.DagsterInstance, zip_file: Path, undisturbed: str
) -> None:
    pipeline.kbo("pause")
    with started(pipeline, *KBO, "import", zip_file) as process:
        wait_until(partial(process.says, f"kbo: {PAUSED}\n"), "the pause", process)
        time.sleep(4)
        assert applied(instance) == 0
        pipeline.kbo("resume")
        assert process.popen.wait(240) == 0
        assert process.output().count(PAUSED) == 1
    check_published(pipeline, undisturbed)
