"""`make soak`: a writer and readers on one DuckLake, while the writer and PostgreSQL are killed.

Ends with 1 unless every reader saw whole extracts only, no batch counts twice, and the lake holds
what the same extracts give in a file to which nothing happened.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kbo_pipeline.core.places import Lake
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.lakes import new_lake, server_directory
from kbo_pipeline_tests.tools.soak.harm import Harm
from kbo_pipeline_tests.tools.soak.importing import Importer
from kbo_pipeline_tests.tools.soak.reader import Read, reads_of

_TWICE = (
    "SELECT count(*) FROM (SELECT 1 FROM import_job_batches"
    " GROUP BY job_id, table_name, batch_number, operation HAVING count(*) > 1)"
)
_TOLD = 10
"""Lines of errors that are printed at most."""


def main() -> None:
    """Soaks, prints what came of it, and ends with 1 when anything is wrong."""
    options = _options()
    root = Path(tempfile.mkdtemp(prefix="kbo-soak-"))
    lake = new_lake(root / "lake")
    settings = _settings(root, lake)
    sample = Sample(options.enterprises, options.seed, default_share=0.2, change_shares=())
    importer = Importer(root, settings, sample, (options.batch_rows, 64))
    importer.import_next()  # a lake that is not there yet is no reader's concern
    with _readers(root, settings, options.readers) as files:
        seconds = options.minutes * 60
        harm = importer.harm = Harm(
            server_directory(),
            importer.writer,
            seconds=seconds,
            every=options.kill_seconds,
            chance=random.Random(options.seed),
        )
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                importer.import_next()
        finally:
            harm.end()
        importer.import_next()  # with nobody killed, and all connections new
    reads = [read for file in files for read in reads_of(file)]
    problems = _print(importer, harm, reads)
    if problems:
        sys.exit(f"not as it must be; kept in {root}")
    shutil.rmtree(root)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument(
        "--kill-seconds", type=float, default=20, help="between kills of the writer"
    )
    parser.add_argument("--enterprises", type=int, default=20_000)
    parser.add_argument("--batch-rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _settings(root: Path, lake: Lake) -> Settings:
    environment = {
        "KBO_DATA_DIR": str(root / "data"),
        "KBO_DATABASE": lake.address,
        "KBO_DATABASE_FILES": lake.files,
    }
    return load_settings(environment, root)


@contextmanager
def _readers(root: Path, settings: Settings, count: int) -> Iterator[list[Path]]:
    """Readers at work; yields the files they write."""
    files = [root / f"reader-{number}.jsonl" for number in range(count)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "kbo_pipeline_tests.tools.soak.reader", str(file)],
            env={**os.environ, **settings.environment},
            stdin=subprocess.PIPE,
        )
        for file in files
    ]
    try:
        yield files
    finally:
        for process in started:
            process.communicate()  # ends its input, and with it the reader
    if any(process.returncode for process in started):
        raise RuntimeError("a reader has ended with an error of its own; see above")


def _print(importer: Importer, harm: Harm, reads: list[Read]) -> list[str]:
    """Prints the table; returns what is wrong."""
    failed = [read for read in reads if read.error]
    away = [read for read in failed if harm.met(read.began, read.ended)]
    errors = [read.error for read in failed if read not in away]
    mixed = [
        f"a reader saw {read.number} with content {read.content[:12]}"
        for read in reads
        if not read.error and importer.contents.get(read.number) != read.content
    ]
    with importer.lake.at_work() as reader:
        ((twice,),) = reader.execute(_TWICE).fetchall()
    is_equal = importer.lake.content_hash() == importer.file.content_hash()
    problems = [*importer.errors, *errors, *mixed]
    problems += [f"{twice} keys are in the ledger twice"] if twice else []
    problems += [] if is_equal else ["the lake does not hold what the file does"]
    problems += [] if len(reads) > len(failed) else ["no reader has read anything"]
    slowest = max((read.ended - read.began for read in reads if not read.error), default=0.0)
    lines: Mapping[str, object] = {
        "extracts": len(importer.contents) - 1,
        "batches": importer.batches,
        "writers killed": harm.kills,
        "PostgreSQL killed": len(harm.outages),
        "attempts that failed and were made again": importer.again,
        "reads": len(reads),
        "slowest read": f"{slowest:.2f} s",
        "reads that failed while PostgreSQL was away": len(away),
        "reads that failed otherwise": len(errors),
        "reads that saw anything but a whole extract": len(mixed),
        "keys twice in the ledger": twice,
        "content": "equal" if is_equal else "different",
    }
    table = Table("what", "found")
    for what, found in lines.items():
        table.add_row(what, str(found))
    console = Console()
    console.print(table)
    for line in [*dict.fromkeys(problems)][:_TOLD]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return problems


if __name__ == "__main__":
    main()
