"""Does the rows of the plan in processes of their own, and reads what was done before."""

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.context import ForkServerProcess
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.tools.chaos.outcomes import Outcome, Record, Row
from kbo_pipeline_tests.tools.chaos.plan import rows
from kbo_pipeline_tests.tools.chaos.world import World, made_world

_LOOK_SECONDS = 0.5
_RUN_BY = ("kbo_pipeline", "kbo_pipeline_tests/tools/chaos", "dagster.yaml", "constraints.txt")
"""What a result depends on: a commit that changes nothing of it is as good."""


def perform(
    plan: Sequence[Row], seed: int, root: Path, console: Console, *, jobs: int, short: bool
) -> Iterator[Record]:
    """Does rows, each in a process and a directory of its own; yields what came of each.

    Args:
        plan: the rows.
        seed: of all that is drawn.
        root: where the directories are.
        console: gets a bar a row, and a line a repetition.
        jobs: rows at the same time.
        short: the rows are those of the short plan.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kbo_pipeline_tests.tools.chaos.plan"])  # once for all rows
    said: Queue[tuple[str, str | Record]] = context.Queue()
    waiting, running = list(enumerate(plan)), dict[str, ForkServerProcess]()
    with ExitStack() as stack:
        bar = stack.enter_context(
            Progress(*columns, console=console, disable=not console.is_terminal)
        )
        world = World("", "", {}, 0.0, root)
        if not all(row.has_stack for row in plan):
            world = stack.enter_context(made_world(root / "world", updates=1 if short else 2))
        tasks = {row.name: bar.add_task(row.name, total=row.times) for row in plan}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    number, row = waiting.pop(0)
                    place = replace(world, root=root / str(number))
                    given = (row.name, row.times, seed, place, said, short)
                    running[row.name] = context.Process(target=_perform, args=given)
                    running[row.name].start()
                try:
                    name, word = said.get(timeout=_LOOK_SECONDS)
                except Empty:
                    for name in [n for n, process in running.items() if process.exitcode]:
                        raise RuntimeError(f"{name}: its process has died") from None
                    continue
                if isinstance(word, Record):
                    running.pop(name).join()
                    yield word
                else:
                    bar.advance(tasks[name])
                    if word:
                        console.print(f"{name}: {word}", highlight=False, markup=False)
        finally:
            while alive := [process for process in running.values() if process.is_alive()]:
                for process in alive:  # again, as one that comes in a destructor is swallowed
                    process.terminate()
                alive[0].join(_LOOK_SECONDS)


def _perform(
    name: str,
    times: int,
    seed: int,
    world: World,
    said: "Queue[tuple[str, str | Record]]",
    short: bool,
) -> None:
    """Does one row, in a process of its own: the plan holds functions, which do not travel."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # and ends its stack
    row = next(row for row in rows(short=short, times=times) if row.name == name)
    # Of its own, so that --only replays a row as it was among all.
    chance = random.Random(f"{seed}/{name}")
    world.root.mkdir(parents=True)
    began = time.monotonic()

    def step(line: str = "") -> None:
        said.put((name, line))

    try:
        outcome = row.run(world, row, chance, step)
    except Exception as error:  # the other rows go on; this one is to be looked into
        traceback.print_exc()
        outcome = Outcome(name, row.times, problems=[f"{type(error).__name__}: {error}"])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    said.put((name, Record(outcome, seed, _commit(), date, round(time.monotonic() - began, 1))))


def kept(file: Path | None, plan: Sequence[Row], *, any_code: bool = False) -> dict[str, Record]:
    """Results of an earlier run that stand, by row: complete, and of the code as it is now.

    Args:
        file: a line of JSON a row; the last one of a row counts.
        plan: the rows.
        any_code: those of other code stand too.
    """
    if file is None or not file.exists():
        return {}
    by_name = {row.name: row for row in plan}
    found = {}
    for line in file.read_text().splitlines():
        record = Record.from_json(json.loads(line))
        row = by_name.get(record.outcome.name)
        if row is not None and record.is_complete(row):
            if not any_code and not _is_same_code(record.commit):
                continue
            found[row.name] = record
    return found


def _commit() -> str:
    """The commit that runs, with `+` behind it when files have changed since."""
    commit = _git("rev-parse", "HEAD").stdout.strip() or "unknown"
    return commit + ("" if _is_same_code(commit) else "+")


def _is_same_code(commit: str) -> bool:
    return _git("diff", "--quiet", commit, "--", *_RUN_BY).returncode == 0


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
