"""`make bench-small`: has a change made it slower? A hundredth of the size, ratios only.

The work on the register, without Dagster, is compared with a bare load beside it: CPU seconds, the
least of some rounds, so that what else runs on the machine counts little.
"""

import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kbo_pipeline.core.settings import load_settings
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.tools.bench.importers import bare
from kbo_pipeline_tests.tools.bench.sample import WHOLE, Extracts, extracts

ROUNDS = 4

LIMITS = {"full": 2.3, "day": 2.4, "nothing": 0.6, "big": 4.2, "later full": 4.6}
"""Times the bare load, at most: a third more than 1.72, 1.73, 0.42, 3.13 and 3.39, on 2 cores.

So small, most of it is what each of 64 batches costs, and each extract: docs/performance.md has the
ratios at full size.
"""


def main() -> None:
    """Prints the ratios; ends with 1 when one is over its limit."""
    made = extracts(load_settings().data_dir / "bench", WHOLE // 100)
    rounds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as directory:
            rounds.append(_round(made, Path(directory)))
    least = {name: min(found[name] for found in rounds) for name in rounds[0]}
    table = Table("what", "CPU seconds", "times the bare load", "limit")
    over = []
    for name, seconds in least.items():
        ratio, limit = seconds / least["bare"], LIMITS.get(name)
        table.add_row(name, f"{seconds:.2f}", f"{ratio:.2f}", f"{limit or ''}")
        if limit is not None and ratio > limit:
            over.append(f"{name}: {ratio:.2f} times the bare load, more than {limit}")
    Console().print(table)
    if over:
        sys.exit("slower than it was: " + "; ".join(over))


def _round(made: Extracts, directory: Path) -> dict[str, float]:
    """CPU seconds of the bare load and of each extract, imported one after the other."""
    core = Core(directory / "core", batch_rows=1000, max_batches=64)
    zips = {field.name.replace("_", " "): getattr(made, field.name) for field in fields(made)}
    work: dict[str, Callable[[], object]] = {"bare": partial(bare, made.full, directory)}
    work |= {name: partial(core.import_zip, zip_file) for name, zip_file in zips.items()}
    return {name: _cpu_seconds(do) for name, do in work.items()}


def _cpu_seconds(work: Callable[[], object]) -> float:
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    work()
    return spent() - before


if __name__ == "__main__":
    main()
