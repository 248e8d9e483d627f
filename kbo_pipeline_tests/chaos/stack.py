"""The rows of the plan about the whole stack: `kbo start` with everything below it, and PostgreSQL.

One data directory lives through all repetitions of a row: each brings an Update to the portal, lets
something die while it is imported, and waits until it is published with nobody there.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil

from kbo_pipeline.defs.applying import WRITER_POOL
from kbo_pipeline.sample import Sample
from kbo_pipeline.sample.portal import StandInPortal
from kbo_pipeline_tests.chaos.kills import Outcome, Row, Step
from kbo_pipeline_tests.chaos.world import World, read_counts
from kbo_pipeline_tests.core import Core
from kbo_pipeline_tests.pipeline import REPOSITORY, Pipeline

_PATIENCE = 300.0  # seconds for an extract, whatever died
_SETTLE = 60.0  # seconds in which runs and slots must be ended after a publication

Victims = Callable[["Stack"], list[psutil.Process]]


def stack_rows(*, short: bool) -> list[Row]:
    """The rows of this module; none is short enough for `make test` but the first."""
    times = 1 if short else 20
    named: list[tuple[str, Victims]] = [
        ("the run worker", lambda stack: stack.workers()),
        ("the code server", lambda stack: stack.named("code-server")),
        ("the daemon", lambda stack: stack.named("dagster._daemon")),
        ("the web server", lambda stack: stack.named("dagster_webserver")),
        ("kbo start alone", lambda stack: [stack.main]),
        ("all of them at once", lambda stack: stack.all()),
    ]
    rows = [
        Row(f"kill -9 of {name} under Dagster", times, _killing(victims)) for name, victims in named
    ]
    return rows[:1] if short else rows


@dataclass
class Stack:
    """A running `kbo start`."""

    pipeline: Pipeline
    process: subprocess.Popen[bytes]

    @property
    def main(self) -> psutil.Process:
        """`kbo start` itself."""
        return psutil.Process(self.process.pid)

    def all(self) -> list[psutil.Process]:
        """It and everything below it; PostgreSQL is not below it."""
        return [self.main, *self.main.children(recursive=True)]

    def named(self, word: str) -> list[psutil.Process]:
        """The processes below it with a word in their command lines."""
        found = []
        for process in self.main.children(recursive=True):
            with suppress(psutil.Error):
                if any(word in part for part in process.cmdline()):
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes of runs."""
        return self.named("multiprocessing.spawn")


def started(pipeline: Pipeline) -> Stack:
    """Runs `kbo start` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (pipeline.directory / "start.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kbo_pipeline.cli", "start"],
            env={**pipeline.environment, "KBO_UI_PORT": str(port)},
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Stack(pipeline, process)


@contextmanager
def _running(pipeline: Pipeline) -> Iterator[list[Stack]]:
    """A stack, in a list so that a row may replace it; whatever runs at the end is ended."""
    stacks = [started(pipeline)]
    try:
        yield stacks
    finally:
        stacks[-1].process.send_signal(signal.SIGTERM)
        try:
            stacks[-1].process.wait(90)
        except subprocess.TimeoutExpired:
            stacks[-1].process.kill()


def _killing(victims: Victims) -> Callable[[World, Row, random.Random, Step], Outcome]:
    def run(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
        outcome = Outcome(row.name, row.times)
        sample = Sample(enterprises=50, seed=12, default_share=0.1, change_shares=())
        root = world.root / row.name.replace(" ", "-")
        offered = root / "offered"
        offered.mkdir(parents=True)
        truth = Core(root / "truth", batch_rows=200, max_batches=6)
        last = 140 + row.times
        counts = {str(number): read_counts(sample, number) for number in range(140, last + 1)}
        with StandInPortal(offered) as portal:
            settings = {
                "KBO_PORTAL_URL": portal.url,
                "KBO_USERNAME": "demo",
                "KBO_PASSWORD": "demo",
                "KBO_POLL_SECONDS": "5",
            }
            pipeline = Pipeline(root / "data", settings)
            pipeline.directory.mkdir()
            full = sample.write_full(root, 140)
            truth.import_zip(full)
            full.rename(offered / full.name)
            with (
                pipeline.instance() as instance,
                _running(pipeline) as stacks,
                world.reader(pipeline.directory, counts) as problems,
            ):
                _wait_published(pipeline, 140)
                outcome.imports += 1
                for number in range(141, last + 1):
                    update = sample.write_update(root, number)
                    truth.import_zip(update)
                    update.rename(offered / update.name)
                    _kill_during(stacks, victims, chance)
                    outcome.hits += 1
                    problems += _check_after(pipeline, instance, truth, number)
                    outcome.imports += 1
                    step()
                    if problems:
                        problems.append(f"at repetition {number - 140}")
                        break
        outcome.problems += problems
        return outcome

    return run


def _kill_during(stacks: list[Stack], victims: Victims, chance: random.Random) -> None:
    """Waits until a run is at work, and a moment longer; starts anew what is not supervised."""
    stack = stacks[-1]
    deadline = time.monotonic() + _PATIENCE
    while not stack.workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(chance.uniform(0.0, 8.0))
    targets = victims(stack)
    while not targets and time.monotonic() < deadline:
        time.sleep(0.05)
        targets = victims(stack)
    for target in targets:
        with suppress(psutil.Error):
            target.send_signal(signal.SIGKILL)
    if stack.main in targets:
        stack.process.wait()
        stacks.append(started(stack.pipeline))


def _wait_published(pipeline: Pipeline, number: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    query = "SELECT count(*) FROM import_jobs WHERE status = 'completed' AND extract_number = ?"
    while time.monotonic() < deadline:
        if pipeline.database.exists():
            with pipeline.read() as reader:
                if reader.execute(query, [number]).fetchall() == [(1,)]:
                    return True
        time.sleep(0.5)
    return False


def _check_after(
    pipeline: Pipeline, instance: dg.DagsterInstance, truth: Core, number: int
) -> list[str]:
    """What is wrong once an extract should be published and everything at rest."""
    if not _wait_published(pipeline, number):
        return [f"{number} is not published after {_PATIENCE:.0f} s"]
    found = []
    if Core(pipeline.directory).content_hash() != truth.content_hash():
        found.append(f"the content after {number} is another one")
    deadline = time.monotonic() + _SETTLE
    while (restless := _restless(pipeline, instance)) and time.monotonic() < deadline:
        time.sleep(1)
    return found + restless


def _restless(pipeline: Pipeline, instance: dg.DagsterInstance) -> list[str]:
    """Runs that are not ended, slots that are taken, files that are left."""
    open_runs = instance.get_runs(
        dg.RunsFilter(
            statuses=[
                dg.DagsterRunStatus.QUEUED,
                dg.DagsterRunStatus.STARTING,
                dg.DagsterRunStatus.STARTED,
                dg.DagsterRunStatus.CANCELING,
            ]
        )
    )
    found = [f"run {run.run_id} of {run.job_name} is {run.status.value}" for run in open_runs]
    if instance.event_log_storage.get_concurrency_info(WRITER_POOL).claimed_slots:
        found.append("the writer's slot is taken")
    directories = ("staging", "work", "downloads")
    left = [
        str(file.relative_to(pipeline.directory))
        for name in directories
        for file in _files(pipeline.directory / name)
        if file.suffix in (".part", ".unpacked", ".json", ".wal") or file.parent.name == "staging"
    ]
    return [*found, *(f"left behind: {name}" for name in left)]


def _files(directory: Path) -> list[Path]:
    return [Path(top) / name for top, _, names in os.walk(directory) for name in names]
