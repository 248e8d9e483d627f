"""`make chaos`: the plan, case by case, and a table of what came of it."""

import argparse
import platform
import random
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kbo_pipeline_tests.chaos.kills import Outcome, Row, engine_rows
from kbo_pipeline_tests.chaos.stack import stack_rows
from kbo_pipeline_tests.chaos.world import made_world


def main() -> None:
    """Runs the plan and prints its table; ends with 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="replays what it was printed for")
    parser.add_argument("--short", action="store_true", help="each fault a few times")
    parser.add_argument("--core", action="store_true", help="without Dagster")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    console = Console()
    console.print(f"seed {seed} (replay with --seed {seed})", highlight=False)
    root = Path(tempfile.mkdtemp(prefix="kbo-chaos-"))
    began = time.monotonic()
    rows = engine_rows(short=options.short)
    rows += [] if options.core else stack_rows(short=options.short)
    outcomes = _run(rows, options.only, seed, root, console)
    if any(outcome.problems for outcome in outcomes):
        console.print(f"what is broken is kept in {root}", highlight=False)
    else:
        shutil.rmtree(root)
    _print(outcomes, console)
    if options.write is not None:
        options.write.write_text(_markdown(outcomes, seed, time.monotonic() - began))
    if any(outcome.problems for outcome in outcomes):
        sys.exit(1)


def _run(rows: list[Row], only: str, seed: int, root: Path, console: Console) -> list[Outcome]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    outcomes = []
    with (
        made_world(root) as world,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        for row in rows:
            if only not in row.name:
                continue
            task = bar.add_task(row.name, total=row.times)
            # Of its own, so that --only replays a row as it was among all.
            chance = random.Random(f"{seed}/{row.name}")
            outcome = row.run(world, row, chance, partial(bar.advance, task))
            console.print(outcome.line(), highlight=False, markup=False, soft_wrap=True)
            outcomes.append(outcome)
    return outcomes


def _print(outcomes: list[Outcome], console: Console) -> None:
    table = Table("fault", "times", "hit", "imports", "lost, doubled, stuck, left, misread")
    for outcome in outcomes:
        bad = "; ".join(outcome.problems[:3]) or "0"
        table.add_row(
            outcome.name, str(outcome.times), str(outcome.hits), str(outcome.imports), bad
        )
    console.print(table)


def _markdown(outcomes: list[Outcome], seed: int, seconds: float) -> str:
    lines = [
        "# Reliability",
        "",
        f"Written by `make chaos` on {datetime.now(UTC):%Y-%m-%d}, seed {seed}, in"
        f" {seconds / 60:.0f} minutes, on {platform.system()} {platform.machine()},"
        f" Python {platform.python_version()}.",
        "",
        "| fault | times | hit | imports | lost, doubled, stuck, left behind, misread |",
        "|---|---|---|---|---|",
    ]
    for o in outcomes:
        bad = "; ".join(o.problems) or "0"
        lines.append(f"| {o.name} | {o.times} | {o.hits} | {o.imports} | {bad} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
