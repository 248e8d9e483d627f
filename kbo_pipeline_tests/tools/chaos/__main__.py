"""`make chaos`: the plan, row by row, and a table of what came of it.

Results are written as each row ends, so that a run of hours can be interrupted and gone on with:
`--results FILE`, then `--results FILE --resume FILE`. Results of other code are taken up with
`--any-code` only; the page names the commit of each row.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from rich.console import Console

from kbo_pipeline_tests.tools.chaos.performing import kept, perform
from kbo_pipeline_tests.tools.chaos.plan import rows
from kbo_pipeline_tests.tools.chaos.report import markdown, print_table


def main() -> None:
    """Runs the plan and prints its table; ends with 1 when a promise was broken."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and with it all rows
    options = _options()
    console = Console() if sys.stdout.isatty() else Console(width=160)
    plan = [
        row
        for row in rows(short=options.short, times=options.times)
        if options.only in row.name
        and not (options.core and row.has_stack)
        and not (options.stack and not row.has_stack)
    ]
    records = kept(options.resume, plan, any_code=options.any_code)
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    console.print(f"seed {seed} (replay with --seed {seed})", highlight=False)
    root = Path(tempfile.mkdtemp(prefix="kbo-chaos-"))
    due = [row for row in plan if row.name not in records and not options.report]
    due.sort(key=lambda row: -row.times)  # the longest first, so that no job is idle at the end
    for record in perform(due, seed, root, console, jobs=options.jobs, short=options.short):
        records[record.outcome.name] = record
        say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
        say(record.outcome.line())
        if record.outcome.problems:
            say(f'again: --seed {seed} --only "{record.outcome.name}"')
        if options.results is not None:
            with options.results.open("a") as file:
                file.write(json.dumps(record.to_json()) + "\n")
    done = [records[row.name] for row in plan if row.name in records]
    missing = [row for row in plan if row.name not in records]
    is_broken = any(not records[row.name].is_complete(row) for row in plan if row not in missing)
    print_table(done, console)
    if options.write is not None:
        options.write.write_text(markdown(done, missing, root))
    if is_broken:
        console.print(f"what is broken is kept in {root}", highlight=False)
        sys.exit(1)
    shutil.rmtree(root)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="replays what it was printed for")
    parser.add_argument("--short", action="store_true", help="each fault a few times")
    parser.add_argument("--core", action="store_true", help="without Dagster")
    parser.add_argument("--stack", action="store_true", help="with Dagster only")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--times", type=int, help="at most so many repetitions of a row")
    parser.add_argument("--jobs", type=int, default=1, help="rows at the same time")
    parser.add_argument("--results", type=Path, help="a file that gets a line of JSON a row")
    parser.add_argument("--resume", type=Path, help="a file of results: not again what is in it")
    parser.add_argument("--any-code", action="store_true", help="take up results of other code")
    parser.add_argument("--report", action="store_true", help="run nothing, tell what is there")
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
