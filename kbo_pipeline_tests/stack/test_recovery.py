"""What dies, and what is only away for a while: work goes on without anybody's help.

`RECOVERY_ROUNDS=3` kills each process three times, and takes PostgreSQL away for 60 s too.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
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
from dagster._core.storage.tags import (
    GRPC_INFO_TAG,
)

from kbo_pipeline.core.files import holder
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.operate.runs.recovery import end_dead_runs
from kbo_pipeline.operate.runtime import runtime_prefix
from kbo_pipeline_tests.support.disturbed import (
    EXTRACT,
    applied,
    check_published,
    instance,
    kbo_start,
    of_postgres,
    pipeline,
    undisturbed,
    wait_for_more,
    wait_until_published,
    zip_file,
)
from kbo_pipeline_tests.support.pipeline import Pipeline, log_entry, run_status
from kbo_pipeline_tests.support.postgres import kill_and_wait
from kbo_pipeline_tests.support.postgres import server as postgres_of
from kbo_pipeline_tests.support.processes import (
    Started,
    free_port,
    processes_of,
    wait_until,
)
from kbo_pipeline_tests.support.server import Server

__all__ = ["instance", "pipeline", "undisturbed", "zip_file"]  # fixtures

ROUNDS = int(os.environ.get("RECOVERY_ROUNDS", "1"))
AWAY_SECONDS = [1, 12] + ([60] if ROUNDS > 1 else [])


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


PROGRAMS = "kbo_pipeline.operate.processes.programs"
CODE_SERVER = (PROGRAMS, "code-server")
DAEMON = (PROGRAMS, "daemon")
KILLED: dict[str, Callable[[Pipeline], psutil.Process]] = {
    "worker": lambda pipeline: psutil.Process(worker(pipeline)),
    "code server": lambda pipeline: child(pipeline, *CODE_SERVER),
    "what forks workers": lambda pipeline: psutil.Process(psutil.Process(worker(pipeline)).ppid()),
    "daemon": lambda pipeline: child(pipeline, *DAEMON),
    "web server": lambda pipeline: child(pipeline, "kbo_pipeline.operate.processes.webserver"),
}


@pytest.mark.rare
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


def test_what_a_daemon_was_launching_when_it_was_killed_is_begun_by_the_next(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    with kbo_start(pipeline) as (process, server):
        daemon, code_server = (child(pipeline, *words) for words in (DAEMON, CODE_SERVER))
        daemon.suspend()
        server.launch("stage_extract", EXTRACT)
        (run,) = instance.get_runs()
        # What a daemon does before it asks the code server; Dagster itself waits 120 s then.
        address = code_server.cmdline()[code_server.cmdline().index("-s") + 1]
        instance.add_run_tags(run.run_id, {GRPC_INFO_TAG: json.dumps({"socket": address})})
        instance.handle_new_event(
            log_entry(run, dg.DagsterEvent("PIPELINE_STARTING", run.job_name))
        )
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
def test_the_next_start_takes_over_from_a_killed_one(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    with kbo_start(pipeline) as (process, server):
        server.launch("stage_extract", EXTRACT)
        wait_for_more(instance, process)
        at_work = worker(pipeline)
        assert at_work is not None
        daemon = child(pipeline, *DAEMON)
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
    return Path(child(pipeline, *CODE_SERVER).environ()["TMPDIR"])


@pytest.mark.rare
def test_what_lives_and_does_not_answer_is_replaced(
    pipeline: Pipeline, instance: dg.DagsterInstance, undisturbed: str
) -> None:
    """All three at once, which takes as long as one."""
    with kbo_start(pipeline) as (process, server):
        names = {
            "code": CODE_SERVER,
            "daemon": DAEMON,
            "webserver": ("kbo_pipeline.operate.processes.webserver",),
        }
        time.sleep(15)  # each has answered once
        stopped = {name: child(pipeline, *words) for name, words in names.items()}
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
    for each in (original, copy):
        assert processes_of(each.directory) == []


def _answers(server: Server) -> bool:
    try:
        return bool(server.runs("publish_extract"))
    except requests.RequestException:
        return False


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
