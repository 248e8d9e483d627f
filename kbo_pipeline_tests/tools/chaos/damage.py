"""The row about disks that forget: a bit changes in one of our files while nothing runs."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

from kbo_pipeline_tests.tools.chaos.faults import POINTS, Fault
from kbo_pipeline_tests.tools.chaos.kills import ended, finish, fresh
from kbo_pipeline_tests.tools.chaos.outcomes import Outcome, Perform, Row, Step
from kbo_pipeline_tests.tools.chaos.world import World

_FILES: dict[str, Callable[[Path], list[Path]]] = {
    "the work file": lambda data: [data / "work" / "register.duckdb"],
    "the published file": lambda data: [data / "kbo.duckdb"],
    "a kept ZIP": lambda data: sorted((data / "downloads").glob("*.zip")),
    "a staging file": lambda data: sorted((data / "staging").glob("*.duckdb")),
}


def damage_rows(*, short: bool) -> list[Row]:
    """A row for each kind of file."""
    times = 1 if short else 20
    return [Row(f"a bit flipped in {name}", times, _flipping(name)) for name in _FILES]


def _flipping(name: str) -> Perform:
    def run(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
        """An engine dies somewhere, a bit changes, the next one mends before readers come back.

        One after the other dies until there is such a file. In half of the cases the register is
        recreated from the kept ZIPs in the end.
        """
        outcome = Outcome(row.name, row.times)
        misses = 0
        directory: Path | None = None
        while outcome.hits < row.times and misses < 100 and not outcome.problems:
            directory = directory or fresh(world, outcome)
            fault = Fault(chance.choice(POINTS), chance.randint(1, 4), chance.uniform(0.0, 0.02))
            with world.reader(directory) as problems:
                code, errors = ended(world.engine(directory, fault, chance.randrange(10**6)))
                if code not in (0, -signal.SIGKILL):
                    problems.append(f"engine: {errors.strip().splitlines()[-1:]}")
            files = [file for file in _FILES[name](directory) if file.exists()]
            if not files and not problems:
                misses += 1
                if code == 0:  # all is done, and the file has come and gone
                    directory = None
                continue
            if not problems:
                flip_a_bit(chance.choice(files), chance)
                outcome.hits += 1
                step()
            options = ("--rebuild",) if chance.random() < 0.5 else ()
            engine = world.engine(directory, Fault("none"), chance.randrange(10**6), *options)
            assert engine.stdout is not None
            engine.stdout.readline()  # mended: from here on readers must be served
            with world.reader(directory) as misread:
                code, errors = ended(engine)
            if code != 0:
                problems.append(f"engine: {errors.strip().splitlines()[-1:]}")
            problems += misread or world.problems(directory)
            finish(outcome, directory, problems)
            directory = None
        if outcome.hits < row.times and not outcome.problems:
            outcome.problems.append("there is hardly ever such a file")
        return outcome

    return run


def flip_a_bit(file: Path, chance: random.Random) -> None:
    """Changes one bit of a file, somewhere."""
    place = chance.randrange(file.stat().st_size)
    with file.open("r+b") as content:
        content.seek(place)
        byte = content.read(1)[0]
        content.seek(place)
        content.write(bytes([byte ^ (1 << chance.randrange(8))]))
