"""The row of the plan in which programs that follow the feed are killed, and engines too."""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kbo_pipeline.read.types import Event
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.tools.chaos.faults import Fault
from kbo_pipeline_tests.tools.chaos.kills import ended, finish, fresh, killed_after
from kbo_pipeline_tests.tools.chaos.outcomes import Outcome, Row, Step
from kbo_pipeline_tests.tools.chaos.world import World

_MOST_STARTS = 60
_SLOWEST = 1.5  # seconds that a follower lives at most; it is ready after 0.3

_FOLLOWER = """
import sys, time
from kbo_pipeline.core.errors import NotFoundError
program = compile(sys.stdin.read(), "documented", "exec")
while True:
    try:
        exec(program, {})
    except NotFoundError:
        pass  # nothing is published yet
    if sys.argv[1] == "once":
        break
    time.sleep(0.01)
"""
"""Executes the reader of the documentation again and again, or once."""


def follower_rows(*, short: bool) -> list[Row]:
    """The row of this module; a short one for `make test-long`."""
    name = "kill -9 of a reader of the feed, while imports are killed too"
    return [Row(name, 2 if short else 500, _killed)]


def _killed(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
    outcome = Outcome(row.name, row.times)
    while outcome.hits < row.times and not outcome.problems:
        directory = fresh(world, outcome)
        events = directory.with_name("events")
        shutil.rmtree(events, ignore_errors=True)
        events.mkdir()
        with world.reader(directory) as problems:
            with _followed(directory, events, chance, problems) as kills:
                problems += _import(world, directory, chance)
            outcome.hits += len(kills)
            step()
            problems += [] if problems else world.problems(directory)
            problems += [] if problems else _missed(directory, events)
        finish(outcome, directory, problems)
    return outcome


def _import(world: World, directory: Path, chance: random.Random) -> list[str]:
    """Imports with engines that are killed, the last one excepted."""
    for number in range(_MOST_STARTS):
        engine = world.engine(directory, Fault("none"), chance.randrange(10**6))
        is_left_alone = number == _MOST_STARTS - 1
        seconds = chance.uniform(0.3, 3.0) * world.seconds  # followers take time from it
        code, errors = ended(engine) if is_left_alone else killed_after(engine, seconds)
        if code == 0:
            return []
        if code != -signal.SIGKILL:
            return [f"engine: {errors.strip().splitlines()[-1:]}"]
    return ["stuck"]


@contextmanager
def _followed(
    directory: Path, events: Path, chance: random.Random, problems: list[str]
) -> Iterator[list[float]]:
    """Lets followers die until the block ends; yields how long each of them lived, in seconds.

    One that ends by itself is among the problems.
    """
    is_over, lives = threading.Event(), list[float]()
    own = random.Random(chance.randrange(10**6))

    def follow() -> None:
        while not is_over.is_set():
            follower = _follower(directory, events, "always")
            seconds = own.uniform(0.2, _SLOWEST)
            is_over.wait(seconds)
            follower.kill()
            _, errors = follower.communicate()
            if follower.returncode != -signal.SIGKILL:
                problems.append(f"a reader of the feed: {errors.strip().splitlines()[-1:]}")
                break
            lives.append(seconds)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield lives
    finally:
        is_over.set()
        thread.join()


def _follower(directory: Path, events: Path, how_often: str) -> "subprocess.Popen[str]":
    page = (REPOSITORY / "docs" / "certainty.md").read_text(encoding="utf-8")
    program = re.search(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    if program is None:
        raise RuntimeError("docs/certainty.md has no reader in Python")
    follower = subprocess.Popen(
        [sys.executable, "-c", _FOLLOWER, how_often],
        env={**os.environ, "KBO_DATA_DIR": str(directory)},
        cwd=events,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if follower.stdin is not None:
        follower.stdin.write(program[1])
        follower.stdin.close()
        follower.stdin = None
    return follower


def _missed(directory: Path, events: Path) -> list[str]:
    """Whether what was followed is, after a last look, the whole feed, each event once."""
    last = _follower(directory, events, "once")
    code, errors = ended(last)
    if code != 0:
        return [f"a reader of the feed: {errors.strip().splitlines()[-1:]}"]
    with Core(directory).read_register() as register:
        feed = [
            (event.cursor, event.entity_number, event.kind, _content(event))
            for event in register.changes_since(register.extracts[-1].key)
        ]
    with closing(sqlite3.connect(events / "events.sqlite")) as kept:
        followed = kept.execute("SELECT * FROM event ORDER BY cursor").fetchall()
    if not feed:
        return ["the feed is empty"]
    return [] if followed == feed else [f"{len(followed)} events followed, {len(feed)} in the feed"]


def _content(event: Event) -> str:
    return json.dumps({"table": event.table, "before": event.before, "after": event.after})
