"""Feeds all cases to `kbo`, and writes docs/bad-input.md."""

import argparse
import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track

from kbo_pipeline_tests.tools.bad_input.feeding import Bench, page


def main() -> None:
    """Runs all cases; ends with 1 when one of them is taken or changes something."""
    parser = argparse.ArgumentParser(prog="python -m kbo_pipeline_tests.tools.bad_input")
    parser.add_argument("--write", type=Path, help="where to write the page to")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--group", default="", help="cases of this group")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp())
    # At the very end, after the PostgreSQL server that runs in it.
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    with Bench(directory) as bench:
        cases = [
            (group, case)
            for group, case in bench.cases
            if options.only in case.name and options.group in group
        ]
        results = [
            (group, case, bench.feed(case))
            for group, case in track(cases, console=Console(stderr=True), transient=True)
        ]
    for _, case, result in results:
        for problem in result.problems:
            print(f"{case.name}: {problem}")
    if options.write:
        options.write.write_text(page([(g, c, r.error) for g, c, r in results]))
    else:
        for _, case, result in results:
            print(f"{case.name}\n    {result.error}")
    sys.exit(any(result.problems for _, _, result in results))


if __name__ == "__main__":
    main()
