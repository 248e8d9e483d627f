"""Runs whose worker is gone: which are ended, and which begin again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    MAX_RETRIES_TAG,
    ROOT_RUN_ID_TAG,
    WILL_RETRY_TAG,
)
from dagster_shared.error import SerializableErrorInfo
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.definitions import defs
from kbo_pipeline.operate.processes import start as serving
from kbo_pipeline.operate.processes.children import Children, end_leftovers
from kbo_pipeline.operate.repair.repair import watch
from kbo_pipeline.operate.runs import claims, recovery
from kbo_pipeline.operate.runs.claims import OWN_RUN
from kbo_pipeline.operate.runs.partitions import register_batches, register_extract
from kbo_pipeline.operate.runs.progress import EXTRACT_TAG, RANGE_END_TAG, RANGE_START_TAG
from kbo_pipeline.operate.runs.recovery import end_dead_runs, is_dead, resume_retries
from kbo_pipeline.operate.runtime import Runtime, is_open, runtime_prefix
from kbo_pipeline_tests.support.disturbed import instance, pipeline, zip_file
from kbo_pipeline_tests.support.pipeline import Pipeline, log_entry, run_status
from kbo_pipeline_tests.support.postgres import kill_and_wait
from kbo_pipeline_tests.support.processes import free_port, started, wait_until

__all__ = ["instance", "pipeline", "zip_file"]  # fixtures


def test_only_our_own_leftovers_are_ended(tmp_path: Path) -> None:
    settings = load_settings({"KBO_DATA_DIR": str(tmp_path)})
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours = {**os.environ, "KBO_DATA_DIR": str(tmp_path)}
    foreign = {**os.environ, "KBO_DATA_DIR": str(tmp_path / "other")}
    processes = [
        subprocess.Popen(sleep, env=environment, start_new_session=True)
        for environment in (ours, foreign, ours)
    ]
    try:
        wait_until(lambda: all(_has_begun(process.pid) for process in processes), "three of them")
        since = [psutil.Process(process.pid).create_time() for process in processes]
        since[2] += 60  # the number was another process's, which began later
        record = [[process.pid, at] for process, at in zip(processes, since, strict=True)]
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "sessions").write_text(json.dumps(record))
        assert end_leftovers(settings) == 1
        assert [process.poll() is None for process in processes] == [False, True, True]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_run_that_no_code_server_has_is_dead_wherever_its_daemon_is(
    pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    """The clock of the daemon's host is its own: only the code server's word counts."""
    code, port = pipeline.directory / "code.py", free_port()
    code.write_text("import dagster\ndefs = dagster.Definitions()\n")
    where = ("-h", "0.0.0.0", "-p", str(port), "-f", code)
    with started(pipeline, "dagster", "api", "grpc", *where) as server:
        wait_until(lambda: is_open("0.0.0.0", port), "the code server", server)
        settings = load_settings(
            pipeline.environment | {"KBO_CODE_HOST": "0.0.0.0", "KBO_CODE_PORT": str(port)}
        )
        nobody = free_port()

        def is_dead_at(port_of_run: int, launched_at: float) -> bool:
            at = json.dumps({"host": "localhost", "port": port_of_run})
            run = instance.add_run(
                dg.DagsterRun(
                    job_name="apply_batches",
                    status=dg.DagsterRunStatus.STARTED,
                    tags={".dagster/grpc_info": at},
                )
            )
            event = dg.DagsterEvent("PIPELINE_STARTING", run.job_name)
            instance.event_log_storage.store_event(log_entry(run, event, launched_at))
            return is_dead(instance, settings, run, ended_at=time.time() + 60)

        assert not is_dead_at(port, time.time())  # it may be on its way
        assert is_dead_at(port, time.time() - 60)
        assert not is_dead_at(nobody, time.time() - 60)  # of another code location
    assert not is_dead_at(port, time.time() - 60)  # nobody answers, who would know


def test_exactly_the_runs_without_a_living_worker_are_ended(
    pipeline: Pipeline, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(pipeline.environment)
    locks = settings.work_dir / "runs"
    locks.mkdir(parents=True)
    ours = {".dagster/grpc_info": json.dumps({"socket": f"/tmp/{runtime_prefix(settings)}x/s"})}
    foreign = {".dagster/grpc_info": json.dumps({"socket": "/tmp/kbo-elsewhere-x/s"})}
    status = dg.DagsterRunStatus

    def add(now: dg.DagsterRunStatus, tags: dict[str, str], has_lock: bool = False) -> str:
        run = instance.add_run(dg.DagsterRun(job_name="apply_batches", status=now, tags=tags))
        if has_lock:
            (locks / f"{run.run_id}.lock").write_text("1")
        event = dg.DagsterEvent("PIPELINE_STARTING", run.job_name)
        instance.event_log_storage.store_event(log_entry(run, event))
        return run.run_id

    dead = add(status.STARTED, ours, has_lock=True)
    ending = add(status.CANCELING, ours, has_lock=True)
    alive = add(status.STARTED, ours, has_lock=True)
    begun = add(status.STARTED, ours)
    launching = add(status.STARTING, {})
    elsewhere = add(status.STARTED, foreign)
    of_command = add(status.STARTED, OWN_RUN, has_lock=True)
    waiting = add(status.NOT_STARTED, ours)
    (locks / f"{dead}.12345").touch()  # of a worker that died while it took its lock

    def now(run_id: str) -> dg.DagsterRunStatus:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    with exclusive_lock(locks / f"{alive}.lock"):
        assert {*end_dead_runs(instance, settings)} == {dead, ending}
        assert end_dead_runs(instance, settings) == []
        monkeypatch.setattr(recovery, "LAUNCH_SECONDS", 0.0)
        assert end_dead_runs(instance, settings) == [launching]
        assert end_dead_runs(instance, settings, ended_at=time.time() + 1) == [begun]
    assert [now(run) for run in (dead, begun, launching, ending)] == [
        status.FAILURE,
        status.FAILURE,
        status.FAILURE,
        status.CANCELED,
    ]
    assert {now(run) for run in (alive, elsewhere, of_command)} == {status.STARTED}
    assert now(waiting) == status.NOT_STARTED
    assert {file.name for file in locks.iterdir()} == {f"{alive}.lock", f"{of_command}.lock"}


def test_what_failed_of_a_lost_connection_is_retried_and_nothing_else(
    pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    """Dagster's own code reads around each step; what fails there is not the step's fault."""

    def add(extract: str, *errors: Exception, retry: int = 0) -> str:
        root = None
        for _ in range(retry + 1):
            run = instance.add_run(
                dg.DagsterRun(
                    job_name="apply_batches",
                    status=dg.DagsterRunStatus.STARTED,
                    tags={EXTRACT_TAG: extract} | ({ROOT_RUN_ID_TAG: root} if root else {}),
                    root_run_id=root,
                    parent_run_id=root,
                )
            )
            root = root or run.run_id
        for error in errors:
            info = _info(error)
            failure = dg.DagsterEvent(
                "STEP_FAILURE",
                run.job_name,
                event_specific_data=StepFailureData(info, None),  # type: ignore[no-untyped-call]
            )
            instance.event_log_storage.store_event(log_entry(run, failure))
        instance.report_run_failed(
            run,
            job_failure_data=JobFailureData(
                error=None, failure_reason=RunFailureReason.STEP_FAILURE
            ),
        )
        return run.run_id

    lost = _lost_connection(instance)
    within = RuntimeError("while a step was executed")
    within.__cause__ = lost
    of_postgres = add("0140-full", lost)
    inside = add("0141-update", within)
    of_data = add("0142-update", ValueError("a column too many"))
    of_both = add("0143-update", lost, ValueError("a column too many"))
    too_often = add("0144-update", lost, retry=3)
    before = add("0145-update", lost)
    add("0145-update")  # somebody has tried since

    settings = load_settings(pipeline.environment)
    assert {*resume_retries(instance, settings)} == {of_postgres, inside}
    assert resume_retries(instance, settings) == []  # Dagster has them now

    def will_retry(run_id: str) -> bool:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        return run.tags[WILL_RETRY_TAG] == "true"

    assert will_retry(of_postgres)
    assert will_retry(inside)
    assert not any(map(will_retry, (of_data, of_both, too_often, before)))


def test_a_retry_that_dagster_has_forgotten_is_taken_up(
    pipeline: Pipeline, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its daemon may read of a failure before the run says so, and never looks again."""

    def add(extract: str, **tags: str) -> str:
        run = instance.add_run(
            dg.DagsterRun(
                job_name="apply_batches",
                status=dg.DagsterRunStatus.STARTING,
                tags={EXTRACT_TAG: extract, **tags},
            )
        )
        instance.report_run_failed(run)
        return run.run_id

    forgotten = add("0240-full")
    add("0241-update", **{AUTO_RETRY_RUN_ID_TAG: "another"})
    add("0242-update", **{MAX_RETRIES_TAG: "0"})
    settings = load_settings(pipeline.environment)
    assert resume_retries(instance, settings) == []  # Dagster may still come to it
    monkeypatch.setattr(recovery, "_FORGOTTEN_SECONDS", -1.0)
    assert resume_retries(instance, settings) == [forgotten]
    monkeypatch.undo()
    assert resume_retries(instance, settings) == []
    failures = instance.all_logs(forgotten, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert len(failures) == 2


def test_a_run_that_met_a_command_at_work_is_taken_up_when_that_has_gone(
    pipeline: Pipeline, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that refuses in the end must not leave an extract to nobody."""
    settings, key = load_settings(pipeline.environment), ExtractKey.parse("0340-full")
    batch = f"{key}-0001"
    register_extract(instance, key)
    register_batches(instance, key, [batch])
    tags = {EXTRACT_TAG: str(key), RANGE_START_TAG: batch, RANGE_END_TAG: batch}
    monkeypatch.setattr(claims, "_PATIENCE", 0.0)
    with claims.claim(settings, key):
        job = defs.resolve_job_def("apply_batches")
        run_id = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False).run_id
        assert run_status(instance, run_id) == dg.DagsterRunStatus.FAILURE
        assert resume_retries(instance, settings) == []
    assert resume_retries(instance, settings) == [run_id]
    assert resume_retries(instance, settings) == []


def test_a_look_goes_on_when_postgres_goes_in_the_middle_of_it(
    pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    settings = load_settings(pipeline.environment)
    statements, said = 0, list[str]()

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1
        if statements in kills:
            kill_and_wait(pipeline.directory / "postgres")

    kills: set[int] = set()
    event.listen(Engine, "before_cursor_execute", count)
    try:
        watch(settings, said.append, ended_at=0.0, is_start=True)
        assert said == []
        middle, statements = statements // 2, 0
        kills = {middle}
        watch(settings, said.append, ended_at=0.0, is_start=True)
        assert [line[:22] for line in said] == ["PostgreSQL went away: "]
        kills, statements = set(range(1000)), 0
        with pytest.raises(StorageError, match=r"^PostgreSQL "):
            watch(settings, said.append, ended_at=0.0, is_start=True)
    finally:
        event.remove(Engine, "before_cursor_execute", count)


@pytest.mark.parametrize("is_swallowed", [False, True])
def test_a_stop_that_comes_during_a_look_for_dead_runs_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_swallowed: bool
) -> None:
    """The look goes on past whatever fails in it; being told to stop is no failure."""

    def look(ended_at: float, is_start: bool) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException:
            if is_swallowed:  # as DuckDB makes an error of its own of what is raised within it
                raise ValueError("somebody's own error") from None
            raise

    settings = load_settings({"KBO_DATA_DIR": str(tmp_path)}, tmp_path)
    said: list[str] = []
    runtime = Runtime(tmp_path / "runtime", "")
    supervisor = serving._Supervisor(
        *(settings, Children(settings, {}), runtime, said.append, look, lambda socket: True),
        read_only=False,
    )
    supervisor._socket.touch()
    monkeypatch.setattr(supervisor, "_next_look", 0.0)
    monkeypatch.setattr(supervisor, "_start", lambda name: None)  # as if all were running
    monkeypatch.setattr(supervisor, "_wait_until", lambda ready: None)
    with serving._ended_by_signals() as check_stopped, pytest.raises(serving._Stopped):
        supervisor.run(None, check_stopped)
    runtime.release()
    failed = [line for line in said if line.startswith("looking for dead runs failed")]
    assert len(failed) == is_swallowed
    assert all("ValueError: somebody's own error" in line for line in failed)


def _has_begun(pid: int) -> bool:
    return "time.sleep(60)" in " ".join(psutil.Process(pid).cmdline())


def _info(error: BaseException | None) -> SerializableErrorInfo | None:
    if error is None:
        return None
    return SerializableErrorInfo(str(error), [], type(error).__name__, _info(error.__cause__))


def _lost_connection(instance: dg.DagsterInstance) -> Exception:
    """What Dagster's storage raises when the server goes away in the middle of a statement."""
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    with storage.connect() as connection, pytest.raises(OperationalError) as lost:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    return lost.value
