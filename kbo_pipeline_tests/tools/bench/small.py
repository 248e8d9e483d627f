"""`make bench-small`: has a change made it slower? A hundredth of the size, ratios only.

The work on the register, without Dagster, in CPU seconds, as a multiple of the bare loads right
before and after it; of some rounds the median, so that a machine that is slow for a while, or
shared, counts little.
"""

import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kbo_pipeline.core.settings import load_settings
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.tools.bench.importers import bare
from kbo_pipeline_tests.tools.bench.sample import WHOLE, Extracts, extracts

ROUNDS = 3
_LOOKS = 3  # who is over a limit is measured longer, before it is called slower

LIMITS = {"full": 2.3, "day": 2.4, "nothing": 0.6, "big": 4.2, "later full": 4.6}
"""Times the bare load, at most: a third more than 1.72, 1.73, 0.42, 3.13 and 3.39, on 2 cores.

So small, most of it is what each of 64 batches costs, and each extract: docs/performance.md has the
ratios at full size.
"""


def main() -> None:
    """Prints the ratios; ends with 1 when one is over its limit."""
    made = extracts(load_settings().data_dir / "bench", WHOLE // 100)
    rounds: list[dict[str, float]] = []
    for _ in range(_LOOKS):
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as directory:
                rounds.append(_round(made, Path(directory)))
        slower = _judge(rounds)
        if not slower:
            break
    if slower:
        sys.exit("slower than it was: " + "; ".join(slower))


def _judge(rounds: Sequence[dict[str, float]]) -> list[str]:
    """Prints the medians of all rounds, and returns what is over its limit."""
    table = Table("what", "times the bare load", "of", "limit")
    slower = []
    for name, limit in LIMITS.items():
        ratios = sorted(ratio[name] for ratio in rounds)
        median = statistics.median(ratios)
        table.add_row(name, f"{median:.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}", str(limit))
        if median > limit:
            slower.append(f"{name}: {median:.2f} times the bare load, more than {limit}")
    Console().print(table)
    return slower


def _round(made: Extracts, directory: Path) -> dict[str, float]:
    """The CPU seconds of each extract, by those of the bare loads before and after it."""
    core = Core(directory / "core", batch_rows=1000, max_batches=64)
    zips = {field.name.replace("_", " "): getattr(made, field.name) for field in fields(made)}
    bare_loads, seconds = [_bare_seconds(made, directory)], {}
    for name, zip_file in zips.items():
        seconds[name] = _cpu_seconds(partial(core.import_zip, zip_file))
        bare_loads.append(_bare_seconds(made, directory))
    beside = map(statistics.mean, pairwise(bare_loads))
    return {name: spent / bare for (name, spent), bare in zip(seconds.items(), beside, strict=True)}


def _bare_seconds(made: Extracts, directory: Path) -> float:
    with tempfile.TemporaryDirectory(dir=directory) as files:
        return _cpu_seconds(partial(bare, made.full, Path(files)))


def _cpu_seconds(work: Callable[[], object]) -> float:
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    work()
    return spent() - before


if __name__ == "__main__":
    main()
