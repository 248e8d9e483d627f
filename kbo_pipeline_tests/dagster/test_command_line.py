"""`kbo` as people use it: help, errors of one line, the bar, Ctrl-C, status of a running import."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from kbo_pipeline.cli import main
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.operate.runs.status import read_status
from kbo_pipeline.read.published import content_hash
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline, materializations, partition_states
from kbo_pipeline_tests.support.processes import (
    Terminal,
    free_port,
    processes_of,
    started,
    wait_until,
)

EXTRACT = "0140-full"
STOPPED = "kbo: stopped; kbo status says how far it came\n"
KBO = ("kbo_pipeline.cli",)
MANY_BATCHES = {"KBO_MAX_BATCHES": "20"}


@pytest.fixture(scope="module")
def big_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Sample(enterprises=3000, seed=5).write_full(tmp_path_factory.mktemp("zips"), 140)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline without extracts, its server kept up between commands."""
    pipeline = Pipeline(tmp_path_factory.mktemp("empty"))
    with pipeline.instance():
        yield pipeline


def published_hash(pipeline: Pipeline) -> str:
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"ATTACH '{pipeline.database}' AS register (READ_ONLY)")
        connection.execute("USE register")
        return content_hash(connection)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_each_command_has_help(command: str, tmp_path: Path) -> None:
    done = Pipeline(tmp_path / "data").kbo(command, "--help")
    assert done.stdout.startswith(f"Usage: kbo {command}")
    assert len(done.stdout.splitlines()) > 4
    assert done.stderr == ""
    assert not (tmp_path / "data").exists()


NO_ZIP = "no-zip.zip"


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        (("import", "gone.zip"), {}, "gone.zip"),
        (("import", NO_ZIP), {}, NO_ZIP),
        (("status", "0140_full"), {}, "'0140_full' is not an extract"),
        (("status", "140-full"), {}, "'140-full' is not an extract"),
        (("retry", "0140-full-0001"), {}, "'0140-full-0001' is not an extract"),
        (("status",), {"KBO_BATCH_ROWS": "many"}, "KBO_BATCH_ROWS"),
        (("start",), {"KBO_UI_PORT": "70000"}, "KBO_UI_PORT"),
        (("import", NO_ZIP), {"KBO_BATCHROWS": "10"}, "did you mean KBO_BATCH_ROWS?"),
        (
            ("status",),
            {"DAGSTER_POSTGRES_URL": "mysql://me:canary@host/db"},
            "DAGSTER_POSTGRES_URL",
        ),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], says: str
) -> None:
    (tmp_path / NO_ZIP).write_bytes(b"no ZIP")
    pipeline = Pipeline(tmp_path / "data", settings)
    words = [str(tmp_path / word) if word.endswith(".zip") else word for word in arguments]
    done = pipeline.kbo(*words, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("kbo: ")
    assert says in line
    assert "canary" not in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("status",), "no extract yet"),
        (("retry", "0999-update"), "0999-update: no such extract"),
    ],
)
def test_an_extract_that_is_not_there_is_one_line_on_stderr(
    empty: Pipeline, arguments: tuple[str, ...], says: str
) -> None:
    done = empty.kbo(*arguments, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("kbo: ")
    assert says in line
    with empty.instance() as instance:
        assert instance.get_runs() == []
        assert instance.get_dynamic_partitions("kbo_extracts") == []
    assert not empty.is_published


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, big_zip: Path
) -> tuple[Pipeline, Terminal, list[dict[str, Any]]]:
    """A whole import on a terminal, and what `kbo status --json` would have printed meanwhile.

    It is read here: starting Python for each look would take longer than many batches do.
    """
    pipeline = Pipeline(tmp_path_factory.mktemp("whole"), MANY_BATCHES)
    said, settings = [], load_settings(pipeline.environment)
    with pipeline.instance() as instance, Terminal() as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "kbo_pipeline.cli", "import", str(big_zip)],
            env=pipeline.environment | {"TERM": "xterm"},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=terminal.theirs,
            text=True,
        )
        wait_until(lambda: instance.get_dynamic_partitions("kbo_extracts"), "the partition")
        while process.poll() is None:
            time.sleep(0.1)
            said.append(read_status(instance, settings, ExtractKey.parse(EXTRACT)).to_json())
        said.append(json.loads(pipeline.kbo("status", "--json").stdout))
        out, _ = process.communicate()
    assert process.returncode == 0
    assert re.fullmatch(r"0140-full: published in \d+\.\d s\n", out)
    return pipeline, terminal, said


def test_an_import_on_a_terminal_shows_a_bar_that_fills(
    uninterrupted: tuple[Pipeline, Terminal, list[dict[str, Any]]],
) -> None:
    _, terminal, _ = uninterrupted
    shown = terminal.text
    assert f"{EXTRACT} staging" in shown
    assert f"{EXTRACT} applying" in shown
    of_import = shown.partition("search index")[0]  # that has a bar of its own
    percentages = [int(found) for found in re.findall(r"(\d+)%", of_import)]
    assert percentages == sorted(percentages)
    assert any(0 < percentage < 100 for percentage in percentages)


def test_status_of_a_running_import_grows_and_names_the_batch_at_work(
    uninterrupted: tuple[Pipeline, Terminal, list[dict[str, Any]]],
) -> None:
    _, _, said = uninterrupted
    running = [found for found in said if found["status"] != "completed"]
    assert running
    assert {found["status"] for found in running} <= {"processing", "pending"}
    assert "processing" in {found["status"] for found in running}
    for found in said:
        assert found["failed_batches"] == []
        assert found["error"] is None
    completed = [found["overall"]["completed"] for found in said]
    assert completed == sorted(completed)
    at_work = [found for found in running if found["current_batch"]]
    assert at_work
    for found in at_work:
        current, following = found["current_batch"], found["next_batch"]
        assert current["operation"] == "insert"
        assert following is None or following["batch"] == current["batch"] + 1


def run_of(instance: dg.DagsterInstance, job: str, *statuses: str) -> Callable[[], bool]:
    def is_there() -> bool:
        return any(
            run.job_name == job and run.status.value in statuses for run in instance.get_runs()
        )

    return is_there


def applied(instance: dg.DagsterInstance, least: int) -> Callable[[], bool]:
    return lambda: sum(materializations(instance, "branch").values()) >= least


def goes_on_applying(instance: dg.DagsterInstance) -> Callable[[], bool]:
    """Whether a batch more is applied than when this was asked first."""
    before: list[int] = []

    def is_more() -> bool:
        count = sum(materializations(instance, "branch").values())
        before.append(count)
        return count > before[0]

    return is_more


def writing(instance: dg.DagsterInstance) -> Callable[[], bool]:
    storage = instance.event_log_storage
    return lambda: bool(storage.get_concurrency_info("register").claimed_slots)


def check_stopped(pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
    """Nothing runs, nothing is red, nobody holds the writer's place, nothing is published."""
    runs = instance.get_runs()
    assert {run.status.value for run in runs} <= {"CANCELED", "SUCCESS"}
    for states in partition_states(instance, EXTRACT).values():
        assert set(states.values()) <= {"MISSING", "MATERIALIZED"}
    places = instance.event_log_storage.get_concurrency_info("register")
    assert places.claimed_slots == []
    assert places.pending_steps == []
    assert not pipeline.is_published


@pytest.mark.long
def test_an_import_that_is_stopped_or_killed_goes_on_where_it_was(
    tmp_path: Path,
    big_zip: Path,
    uninterrupted: tuple[Pipeline, Terminal, list[dict[str, Any]]],
) -> None:
    pipeline = Pipeline(tmp_path, {"KBO_MAX_BATCHES": "12"})  # another cut, the same content
    with pipeline.instance() as instance:
        staging = run_of(instance, "stage_extract", "STARTED")
        beginning = run_of(instance, "apply_batches", "NOT_STARTED", "STARTED")
        for moment, has_come, number in (
            ("staging", staging, signal.SIGTERM),
            ("beginning to apply", beginning, signal.SIGINT),
            ("applying", applied(instance, 3), signal.SIGINT),
            ("applying again", goes_on_applying(instance), signal.SIGHUP),
        ):
            with started(pipeline, *KBO, "import", big_zip) as process:
                wait_until(has_come, moment, process)
                # A terminal sends Ctrl-C to all of them, what Dagster has started included.
                assert process.end(number, whole_group=number == signal.SIGINT) == 130, moment
                assert process.output() == STOPPED, moment
            check_stopped(pipeline, instance)
        status = json.loads(pipeline.kbo("status", "--json").stdout)
        assert status["status"] == "pending"
        assert 0 < status["overall"]["completed"] < status["overall"]["total"]
        assert status["next_batch"]["batch"] == status["overall"]["completed"] // 7 + 1
        assert status["error"] is None

        with started(pipeline, *KBO, "import", big_zip) as process:
            wait_until(run_of(instance, "apply_batches", "STARTED"), "applying again", process)
            wait_until(writing(instance), "holding the writer's place", process)
            process.end(signal.SIGKILL)
        assert run_of(instance, "apply_batches", "STARTED")()
        assert writing(instance)()
        done = pipeline.kbo("import", big_zip)
        assert done.stdout.startswith(f"{EXTRACT}: published")
        assert done.stderr == ""
        assert {run.status.value for run in instance.get_runs()} == {"CANCELED", "SUCCESS"}
    assert published_hash(pipeline) == published_hash(uninterrupted[0])


def test_an_import_that_waits_for_another_writer_can_be_stopped(
    empty: Pipeline, tmp_path: Path
) -> None:
    zip_file = Sample(enterprises=60, seed=5).write_full(tmp_path, 140)
    with empty.instance() as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default("register")
        storage.claim_concurrency_slot("register", "another-run", "apply_to_register")
        with started(empty, *KBO, "import", zip_file) as process:
            wait_until(run_of(instance, "stage_extract", "SUCCESS"), "staging", process)
            assert process.end(signal.SIGHUP) == 130
            assert process.output() == STOPPED
        storage.free_concurrency_slots_for_run("another-run")
        check_stopped(empty, instance)


@pytest.mark.long
@pytest.mark.parametrize(
    "number", [signal.SIGHUP, pytest.param(signal.SIGINT, marks=pytest.mark.rare)]
)
def test_ctrl_c_and_a_closed_terminal_end_kbo_start_and_all_its_children(
    tmp_path: Path, number: signal.Signals
) -> None:
    pipeline = Pipeline(tmp_path, {"KBO_UI_PORT": str(free_port())})
    with started(pipeline, *KBO, "start") as process:
        wait_until(partial(process.says, "web UI:"), "kbo start", process)
        assert len(processes_of(tmp_path)) >= 5  # itself, three children, PostgreSQL
        second = pipeline.kbo_process("start", check=False)
        assert second.returncode == 1
        (line,) = second.stderr.splitlines()
        assert line.startswith("kbo: ")
        assert f"process {process.popen.pid} " in line
        assert process.end(number, whole_group=True) == 0
        assert process.output().splitlines()[-1] == "stopped"
    assert processes_of(tmp_path) == []


def test_kbo_start_names_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = Pipeline(tmp_path, {"KBO_UI_PORT": str(port)}).kbo_process("start", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kbo: KBO_UI_PORT: port {port} is taken")
    assert not (tmp_path / "postgres").exists()


@pytest.mark.parametrize(
    ("arguments", "settings", "refused"),
    [
        ((), {"KBO_CODE_HOST": "code"}, "KBO_CODE_HOST: is for processes on several hosts"),
        (("--only", "web"), {}, "KBO_CODE_HOST: not set; kbo start --only web"),
        (("--only", "code"), {"KBO_CODE_HOST": "code"}, "DAGSTER_POSTGRES_URL: not set"),
        (
            ("--only", "code"),
            {"KBO_CODE_HOST": "192.0.2.1", "DAGSTER_POSTGRES_URL": "postgresql://a@b/c"},
            "KBO_CODE_PORT: cannot listen on 192.0.2.1:3030",
        ),
    ],
)
def test_a_part_is_refused_what_it_cannot_run_with(
    tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], refused: str
) -> None:
    done = Pipeline(tmp_path / "data", settings).kbo_process("start", *arguments, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith(f"kbo: {refused}")
