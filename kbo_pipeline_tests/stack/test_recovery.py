"""What dies, and what is only away for a while: work goes on without anybody's help.

`RECOVERY_ROUNDS=3` kills each process three times, and takes PostgreSQL away for 60 s too.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import dagster as dg
import psutil
import pytest
import requests
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    GRPC_INFO_TAG,
    MAX_RETRIES_TAG,
    ROOT_RUN_ID_TAG,
    WILL_RETRY_TAG,
)
from dagster_shared.error import SerializableErrorInfo
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.locks import exclusive_lock, holder
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.definitions import defs
from kbo_pipeline.operate.parts import is_open
from kbo_pipeline.operate.processes import start as serving
from kbo_pipeline.operate.processes.children import Children, end_leftovers
from kbo_pipeline.operate.repair.watch import watch
from kbo_pipeline.operate.runs import claims, recovery, workers
from kbo_pipeline.operate.runs.claims import OWN_RUN
from kbo_pipeline.operate.runs.partitions import register_batches, register_extract
from kbo_pipeline.operate.runs.progress import EXTRACT_TAG, RANGE_END_TAG, RANGE_START_TAG
from kbo_pipeline.operate.runs.recovery import end_dead_runs, resume_retries
from kbo_pipeline.operate.runs.workers import is_dead
from kbo_pipeline.operate.runtime import Runtime, runtime_prefix
from kbo_pipeline_tests.support.disturbed import (
    EXTRACT,
    applied,
    check_published,
    kbo_start,
    wait_for_more,
    wait_until_published,
)
from kbo_pipeline_tests.support.pipeline import Pipeline, run_status
from kbo_pipeline_tests.support.postgres import kill_and_wait
from kbo_pipeline_tests.support.postgres import server as postgres_of
from kbo_pipeline_tests.support.processes import (
    Started,
    free_port,
    processes_of,
    started,
    wait_until,
)
from kbo_pipeline_tests.support.server import Server

ROUNDS = int(os.environ.get("RECOVERY_ROUNDS", "1"))
AWAY_SECONDS = [1, 12] + ([60] if ROUNDS > 1 else [])


def of_postgres(words: list[str]) -> bool:
    """Whether a command line is of the embedded server, or of what stops it at last."""
    return "postgres" in words[0] or "kbo_pipeline.operate.processes.keeper" in words


def runtime_directories(pipeline: Pipeline) -> list[Path]:
    """The directories with sockets of a data directory, wherever they are."""
    settings = load_settings(pipeline.environment)
    parents = (settings.work_dir, Path(tempfile.gettempdir()), Path("/tmp"))
    prefix = runtime_prefix(settings)
    return sorted({path for parent in parents for path in parent.glob(f"{prefix}*")})


def worker(pipeline: Pipeline) -> int | None:
    """The process id of the run worker."""
    pids = [holder(file) for file in (pipeline.directory / "work" / "runs").glob("*.lock")]
    return next((pid for pid in pids if pid is not None), None)


def child(pipeline: Pipeline, *words: str) -> psutil.Process:
    """The process of `kbo start` whose command line has these words."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and set(words) <= set(process.cmdline())
                and process.environ().get("KBO_DATA_DIR") == str(pipeline.directory)
            ):
                found.append(process)
    return found[0]


CODE_SERVER = "kbo_pipeline.operate.processes.code_server"
KILLED: dict[str, Callable[[Pipeline], psutil.Process]] = {
    "worker": lambda pipeline: psutil.Process(worker(pipeline)),
    "code server": lambda pipeline: child(pipeline, CODE_SERVER),
    "what forks workers": lambda pipeline: psutil.Process(psutil.Process(worker(pipeline)).ppid()),
    "daemon": lambda pipeline: child(pipeline, "kbo_pipeline.operate.processes.daemon"),
    "web server": lambda pipeline: child(pipeline, "kbo_pipeline.operate.processes.webserver"),
}


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("killed", [list(KILLED), *([one] * 3 for one in KILLED if ROUNDS > 1)])
def test_what_is_killed_is_replaced_and_the_import_goes_on(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str, killed: list[str]
) -> None:
    with kbo_start(pipeline) as (process, server):
        server.launch("stage_extract", EXTRACT)
        for name in killed:
            wait_for_more(instance, process)
            at_work = worker(pipeline)
            assert at_work is not None
            died_at = time.monotonic()
            KILLED[name](pipeline).kill()
            if name in ("code server", "what forks workers"):
                wait_until(partial(_is_gone, at_work), "its worker's end")
            wait_for_more(instance, process, 1)
            print(f"{name}: went on {time.monotonic() - died_at:.1f} s after its death")
        wait_until_published(instance, process)
        wait_until(lambda: _answers(server), "the web server", process)
        check_published(pipeline, undisturbed)
    assert [words for words in processes_of(pipeline.directory) if not of_postgres(words)] == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_a_daemon_was_launching_when_it_was_killed_is_begun_by_the_next(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    with kbo_start(pipeline) as (process, server):
        daemon, code_server = (
            child(pipeline, name) for name in ("kbo_pipeline.operate.processes.daemon", CODE_SERVER)
        )
        daemon.suspend()
        server.launch("stage_extract", EXTRACT)
        (run,) = instance.get_runs()
        # What a daemon does before it asks the code server; Dagster itself waits 120 s then.
        address = code_server.cmdline()[code_server.cmdline().index("-s") + 1]
        instance.add_run_tags(run.run_id, {GRPC_INFO_TAG: json.dumps({"socket": address})})
        instance.handle_new_event(_entry(run, dg.DagsterEvent("PIPELINE_STARTING", run.job_name)))
        daemon.kill()
        killed_at = time.monotonic()
        failed = dg.DagsterRunStatus.FAILURE
        wait_until(lambda: run_status(instance, run.run_id) == failed, "its end", process)
        print(f"noticed {time.monotonic() - killed_at:.1f} s after its death")
        said = [entry.message for entry in instance.all_logs(run.run_id)]
        assert any("the process of this run has died" in message for message in said)
        wait_until_published(instance, process)
        check_published(pipeline, undisturbed)


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_next_start_takes_over_from_a_killed_one(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    with kbo_start(pipeline) as (process, server):
        server.launch("stage_extract", EXTRACT)
        wait_for_more(instance, process)
        at_work = worker(pipeline)
        assert at_work is not None
        daemon = child(pipeline, "kbo_pipeline.operate.processes.daemon")
        process.end(signal.SIGKILL)
        psutil.wait_procs([daemon], timeout=10)
        assert not daemon.is_running()
    killed_at = time.monotonic()
    with kbo_start(pipeline) as (process, server):
        assert not psutil.pid_exists(at_work)
        assert len(runtime_directories(pipeline)) == 1  # its own sockets
        wait_for_more(instance, process, 1)
        print(f"went on {time.monotonic() - killed_at:.1f} s after the next start")
        wait_until_published(instance, process)
        check_published(pipeline, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.rare
def test_a_worker_that_comes_back_late_does_nothing_more(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    settings = load_settings(pipeline.environment)
    with kbo_start(pipeline) as (process, server):
        server.launch("stage_extract", EXTRACT)
        wait_for_more(instance, process)
        late = worker(pipeline)
        assert late is not None
        os.kill(late, signal.SIGSTOP)
        try:
            assert end_dead_runs(instance, settings) == []  # it lives
            (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            instance.report_run_failed(run, "taken for dead")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            retried = dg.RunsFilter(
                job_name="apply_batches", statuses=[dg.DagsterRunStatus.STARTED]
            )
            wait_until(lambda: instance.get_runs(retried), "the retry", process)
            before = applied(instance)
            time.sleep(5 if ROUNDS == 1 else 90)
            assert applied(instance) == before  # the retry waits for the register
        finally:
            os.kill(late, signal.SIGCONT)
        wait_until_published(instance, process)
        assert run_status(instance, run.run_id) == dg.DagsterRunStatus.FAILURE
        assert not psutil.pid_exists(late)
        check_published(pipeline, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.rare
def test_an_import_goes_on_after_postgres_was_away(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    directory = pipeline.directory / "postgres"
    with kbo_start(pipeline) as (process, server):
        server.launch("stage_extract", EXTRACT)
        for seconds in AWAY_SECONDS:
            wait_for_more(instance, process)
            with (directory / "start.lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # nobody starts it meanwhile
                kill_and_wait(directory)
                time.sleep(seconds)
            back_at = time.monotonic()
            wait_for_more(instance, process)
            print(f"away for {seconds} s: went on {time.monotonic() - back_at:.1f} s after that")
        wait_until_published(instance, process)
        check_published(pipeline, undisturbed)
        wait_until(lambda: _answers(server), "the web server", process)


def runtime_directory_of(pipeline: Pipeline) -> Path:
    """Where a running `kbo start` has its sockets: its children have it for temporary files."""
    return Path(child(pipeline, CODE_SERVER).environ()["TMPDIR"])


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_lives_and_does_not_answer_is_replaced(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    """All three at once, which takes as long as one."""
    with kbo_start(pipeline) as (process, server):
        names = {
            "code": CODE_SERVER,
            "daemon": "kbo_pipeline.operate.processes.daemon",
            "webserver": "kbo_pipeline.operate.processes.webserver",
        }
        time.sleep(15)  # each has answered once
        stopped = {name: child(pipeline, module) for name, module in names.items()}
        for one in stopped.values():
            one.suspend()
        stopped_at = time.monotonic()
        for name, one in stopped.items():
            said = f"{name}: lives, and has not answered for 60 s; it is started again in 1 s"
            wait_until(partial(process.says, said), name, process)
            print(f"{name}: noticed {time.monotonic() - stopped_at:.1f} s after it was stopped")
            assert not one.is_running()
        assert time.monotonic() - stopped_at < 100
        wait_until(lambda: _answers(server), "the web server", process)
        server.launch("stage_extract", EXTRACT)
        wait_until_published(instance, process)
        check_published(pipeline, undisturbed)
        assert process.output().count("lives, and has not answered") == 3


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.timeout(600)
def test_nobody_is_replaced_for_a_postgres_that_stands_still(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    with kbo_start(pipeline) as (process, server):
        server.launch("stage_extract", EXTRACT)
        wait_for_more(instance, process)
        found = postgres_of(pipeline.directory / "postgres")
        assert found is not None
        stopped = [found, *found.children()]
        for one in stopped:
            one.suspend()
        time.sleep(100)
        status = pipeline.kbo("status", check=False)
        for one in stopped:
            one.resume()
        assert status.returncode == 1
        assert "no answer in 10 s" in status.stderr
        assert "lives, and has not answered" not in process.output()
        assert "looking for dead runs failed: " in process.output()
        wait_until_published(instance, process)
        check_published(pipeline, undisturbed)


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cleaned", ["code.sock", "listener-*", "workspace.yaml", "*", ""])
def test_what_is_cleaned_away_is_made_again_and_an_import_goes_on(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str, cleaned: str
) -> None:
    with kbo_start(pipeline) as (process, server):
        runtime = runtime_directory_of(pipeline)
        server.launch("stage_extract", EXTRACT)
        wait_for_more(instance, process)
        time.sleep(6)  # the sockets are known
        if cleaned:
            for file in runtime.glob(cleaned):
                file.unlink()
        else:
            shutil.rmtree(runtime)
        cleaned_at = time.monotonic()
        wait_until(partial(process.says, "was gone, and is made again"), "the noticing", process)
        wait_until((runtime / "workspace.yaml").exists, "the workspace", process)
        wait_until((runtime / "code.sock").exists, "the socket", process)
        print(f"{cleaned}: made again {time.monotonic() - cleaned_at:.1f} s after that")
        assert time.monotonic() - cleaned_at < 30
        wait_until_published(instance, process)
        check_published(pipeline, undisturbed)


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_copy_of_a_running_data_directory_starts_beside_it(tmp_path: Path) -> None:
    original = Pipeline(tmp_path / "original", {"KBO_UI_PORT": str(free_port())})
    copy = Pipeline(tmp_path / "copy", {"KBO_UI_PORT": str(free_port())})
    with kbo_start(original) as (process, server):
        runtime = runtime_directory_of(original)
        subprocess.run(["cp", "-a", original.directory, copy.directory], check=True)
        with kbo_start(copy) as (_, other):
            assert runtime_directory_of(copy) != runtime
            assert other.runs("stage_extract") == []
        assert sorted(path.name for path in runtime.glob("*.sock")) == ["code.sock"]
        assert server.runs("stage_extract") == []
        assert not process.says("was gone")
    for pipeline in (original, copy):
        assert processes_of(pipeline.directory) == []


def _answers(server: Server) -> bool:
    try:
        return bool(server.runs("publish_extract"))
    except requests.RequestException:
        return False


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.rare
def test_a_child_that_dies_again_and_again_ends_kbo_start_with_one_error(
    tmp_path: Path,
) -> None:
    pipeline = Pipeline(tmp_path, {"KBO_UI_PORT": str(free_port())})
    with kbo_start(pipeline) as (process, _):
        for deaths in range(8):
            find = partial(child, pipeline, "kbo_pipeline.operate.processes.webserver")
            wait_until(partial(_or_none, find), "the web server", process)
            find().kill()
            if deaths < 7:
                wait_until(partial(_has_lines, process, deaths + 1), "its death", process)
                last = process.output().splitlines()[-1]
                said = f"webserver: ended with code -9; it is started again in {min(2**deaths, 16)}"
                assert last.startswith(f"{said} s; see ")
        assert process.popen.wait(60) == 1
        last = process.output().splitlines()[-1]
        assert last.startswith("kbo: webserver: ended with code -9, for the 8th time in 150 s")
        assert str(tmp_path / "work" / "logs" / "webserver.log") in last
    assert processes_of(tmp_path) == []


def _has_lines(process: Started, count: int) -> bool:
    lines = process.output().splitlines()
    return sum(line.startswith("webserver: ended") for line in lines) >= count


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def _or_none(find: Callable[[], psutil.Process]) -> psutil.Process | None:
    try:
        return find()
    except IndexError:
        return None


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


def _has_begun(pid: int) -> bool:
    return "time.sleep(60)" in " ".join(psutil.Process(pid).cmdline())


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
            instance.event_log_storage.store_event(_entry(run, event, launched_at))
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
        instance.event_log_storage.store_event(_entry(run, event))
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
        monkeypatch.setattr(workers, "LAUNCH_SECONDS", 0.0)
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
            instance.event_log_storage.store_event(_entry(run, failure))
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


def _entry(
    run: dg.DagsterRun, event: dg.DagsterEvent, timestamp: float | None = None
) -> dg.EventLogEntry:
    return dg.EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        level="debug",
        user_message="",
        run_id=run.run_id,
        timestamp=timestamp or time.time(),
        job_name=run.job_name,
        dagster_event=event,
    )


@pytest.mark.parametrize("is_swallowed", [False, True])
def test_a_stop_that_comes_during_a_look_for_dead_runs_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_swallowed: bool
) -> None:
    """The look goes on past whatever fails in it; being told to stop is no failure."""

    class Look:
        def __call__(self, *, ended_at: float, is_start: bool) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except BaseException:
                if is_swallowed:  # as DuckDB makes an error of its own of what is raised within it
                    raise ValueError("somebody's own error") from None
                raise

        def has_code_server(self, socket: Path) -> bool:
            return True

    settings = load_settings({"KBO_DATA_DIR": str(tmp_path)}, tmp_path)
    said: list[str] = []
    runtime = Runtime(tmp_path / "runtime", "")
    supervisor = serving._Supervisor(
        settings, Children(settings, {}), runtime, said.append, Look(), read_only=False
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
