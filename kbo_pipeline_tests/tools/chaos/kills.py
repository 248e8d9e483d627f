"""The rows of the plan that need no Dagster: engines that die somewhere, or are lied to.

An engine goes on in the data directory of the one before it until everything is published; then
the register is compared with the truth, and the next directory begins.
"""

import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from kbo_pipeline_tests.tools.chaos.faults import (
    LIES,
    MADE_UP,
    NEAR_COMMIT,
    POINTS,
    ROOM_TAKEN,
    Fault,
)
from kbo_pipeline_tests.tools.chaos.outcomes import Outcome, Perform, Row, Step
from kbo_pipeline_tests.tools.chaos.world import World

_MOST_STARTS = 60  # of engines for one import that is killed again and again
_MOST_LIED_TO = 60  # of engines, where one call of a hundred fails: few attempts get through
_ATTEMPTS = "10"  # of each of them
_PATIENCE = 120.0
_STAGES = {
    "portal.download": "downloading",
    "core.stage": "staging",
    "_apply_all": "applying",
    "core.publish": "publishing",
}
"""The calls of an engine, as a traceback shows them, and what it is at then."""

_NO_ROOM = ("No space left", "not enough space", "Could not write", "disk is full")


def engine_rows(*, short: bool) -> list[Row]:
    """The rows of this module; short ones for `make test`."""
    some = 2 if short else 500
    rows = [
        Row("kill -9 at a random moment", some, _at_random),
        Row("kill -9 within 5 ms of a commit", some, _near_commit),
    ]
    rows += [Row(f"kill -9 {point}", 1 if short else 20, _at_point(point)) for point in POINTS]
    rows.append(Row("a commit that is told to have failed", 1 if short else 50, _lied_to))
    rows.append(Row("write-ahead log cut or gone after a kill", 1 if short else 50, _cut_log))
    if _can_mount():  # only root can make a disk that is small, and not in every container
        rows.append(Row("disk full", 1 if short else 12, _disk_full))
    return rows


def _at_random(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
    def start(directory: Path) -> tuple[int, str]:
        engine = world.engine(directory, Fault("none"), chance.randrange(10**6))
        return killed_after(engine, chance.uniform(0.2, 1.2) * world.seconds)

    return _imports(world, row, start, step)


def _near_commit(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
    def start(directory: Path) -> tuple[int, str]:
        fault = Fault(NEAR_COMMIT, chance.randint(1, 12), chance.uniform(0.0, 0.005))
        return ended(world.engine(directory, fault, chance.randrange(10**6)))

    return _imports(world, row, start, step)


def _at_point(point: str) -> Perform:
    def run(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
        def start(directory: Path) -> tuple[int, str]:
            fault = Fault(point, chance.randint(1, 3), chance.uniform(0.0, 0.02))
            return ended(world.engine(directory, fault, chance.randrange(10**6)))

        return _imports(world, row, start, step)

    return run


def _lied_to(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
    """Counts imports, not lies: each call has its chance."""
    outcome = Outcome(row.name, row.times)
    for _ in range(row.times):
        directory = fresh(world, outcome)
        with world.reader(directory) as problems:
            for _ in range(_MOST_LIED_TO):
                seed = chance.randrange(10**6)
                engine = world.engine(directory, Fault(LIES), seed, "--attempts", _ATTEMPTS)
                code, errors = ended(engine)
                if code == 0:
                    break
                if MADE_UP not in errors:
                    problems.append(f"engine: {errors.strip().splitlines()[-1:]}")
                    break
            else:
                problems.append("stuck")
            problems += [] if problems else world.problems(directory)
        outcome.hits += 1
        step()
        finish(outcome, directory, problems)
    return outcome


def _cut_log(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
    def start(directory: Path) -> tuple[int, str]:
        fault = Fault("after a commit", chance.randint(1, 9))
        code, errors = ended(world.engine(directory, fault, chance.randrange(10**6)))
        log = directory / "work" / "register.duckdb.wal"
        if code == -signal.SIGKILL and log.exists():
            if chance.random() < 0.3:
                log.unlink()
            else:
                os.truncate(log, chance.randrange(log.stat().st_size + 1))
        return code, errors

    return _imports(world, row, start, step)


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as directory:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            return False
        subprocess.run(["umount", directory], check=True)
        return True


def _disk_full(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
    """A disk that is full somewhere in the import, and a little larger after each failure.

    Until it was so in each stage a fourth of the times.
    """
    outcome = Outcome(row.name, row.times)
    found = dict.fromkeys(_STAGES.values(), 0)
    if row.times < len(found):  # of the short plan: wherever it happens
        found = {"": 0}
    each = -(-row.times // len(found))
    while outcome.hits < row.times and not outcome.problems and outcome.imports < _MOST_STARTS:
        directory = fresh(world, outcome)
        # At first less than the first ZIP every other time, which has 27 of them.
        kilobytes = chance.choice((chance.randint(12, 24), chance.randint(500, 8000)))
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(directory)],
            check=True,
        )
        try:
            with world.reader(directory) as problems:
                for _ in range(_MOST_STARTS):
                    seed = chance.randrange(10**6)
                    code, errors = ended(world.engine(directory, Fault(ROOM_TAKEN), seed))
                    if code == 0:
                        break
                    if not any(text in errors for text in _NO_ROOM):
                        problems.append(f"engine: {errors.strip().splitlines()[-1:]}")
                        break
                    stage = next((s for call, s in _STAGES.items() if f"{call}(" in errors), None)
                    outcome.note(f"the disk was full while {stage or 'looking at what is there'}")
                    for counted in found.keys() & {stage, ""}:
                        found[counted] += 1
                    hits = sum(min(count, each) for count in found.values())
                    if hits > outcome.hits:
                        outcome.hits = hits
                        step()
                    kilobytes += chance.randint(100, 2000)
                    subprocess.run(
                        ["mount", "-o", f"remount,size={kilobytes}k", str(directory)], check=True
                    )
                else:
                    problems.append("stuck")
                problems += [] if problems else world.problems(directory)
        finally:
            subprocess.run(["umount", str(directory)], check=True)
        outcome.problems += problems
    if outcome.hits < row.times:
        outcome.problems.append(f"the disk was hardly ever full somewhere: {found}")
    return outcome


def _imports(
    world: World, row: Row, start: Callable[[Path], tuple[int, str]], step: Step
) -> Outcome:
    """Imports again and again, until the fault has happened as often as the row says."""
    outcome = Outcome(row.name, row.times)
    misses = 0
    while outcome.hits < row.times and misses < 20:
        directory = fresh(world, outcome)
        with world.reader(directory) as problems:
            for number in range(_MOST_STARTS):
                # The last one undisturbed: on a busy machine the others may all be killed early.
                is_left_alone = outcome.hits >= row.times or number == _MOST_STARTS - 1
                code, errors = (
                    ended(world.engine(directory, Fault("none"), 0))
                    if is_left_alone
                    else start(directory)
                )
                if code == 0:
                    break
                if code != -signal.SIGKILL:
                    problems.append(f"engine: {errors.strip().splitlines()[-1:]}")
                    break
                outcome.hits += 1
                misses = 0
                step()
            else:
                problems.append("stuck")
            misses += 1
            problems += [] if problems else world.problems(directory)
        finish(outcome, directory, problems)
    if outcome.hits < row.times:
        outcome.problems.append("the fault does not happen any more")
    return outcome


def fresh(world: World, outcome: Outcome) -> Path:
    """An empty data directory for the next import."""
    directory = world.root / "data"
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    outcome.imports += 1
    return directory


def finish(outcome: Outcome, directory: Path, problems: list[str]) -> None:
    """Notes what is wrong with an import, and keeps its data directory then."""
    if problems:
        kept = directory.with_name(f"broken {outcome.name} {outcome.imports}")
        directory.rename(kept)
    outcome.problems += problems


def ended(engine: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits for an engine; its exit code, and what it said of errors."""
    _, errors = engine.communicate(timeout=_PATIENCE)
    return engine.returncode, errors


def killed_after(engine: subprocess.Popen[str], seconds: float) -> tuple[int, str]:
    """Kills an engine after some seconds, if it has not ended by then; gives what `ended` does."""
    try:
        _, errors = engine.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        engine.kill()
        return ended(engine)
    return engine.returncode, errors
