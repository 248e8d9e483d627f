"""Where engines are killed: a portal, the truth, and data directories with somebody who reads."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline.sample.portal import StandInPortal
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.pipeline import fetch
from kbo_pipeline_tests.tools.chaos.faults import Fault

_PATIENCE = 120.0  # seconds; an engine at work needs two

_READER = """
import json, os, select, sys, time, duckdb
database, expected = sys.argv[1], json.loads(sys.argv[2])
polls = 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.1)[0]:
    if not os.path.exists(database):
        continue
    with duckdb.connect(database, read_only=True) as reader:
        (number, unfinished), = reader.execute(
            "SELECT max(extract_number) FILTER (status = 'completed'),"
            " count(*) FILTER (status NOT IN ('completed', 'rolled_back')) FROM import_jobs"
        ).fetchall()
        names = list(expected[str(number)])
        each = ", ".join(f'(SELECT count(*) FROM "current".{name})' for name in names)
        counts = dict(zip(names, reader.execute(f"SELECT {each}").fetchone()))
    if unfinished or counts != expected[str(number)]:
        sys.exit(f"a mixture at {number}: {counts}, {unfinished} unfinished jobs")
    polls += 1
print(polls)
"""


@dataclass(frozen=True)
class World:
    """What all cases share.

    Attributes:
        portal_url: where engines fetch.
        truth: the content hash of a register that nothing happened to.
        counts: current rows by table, by extract number.
        seconds: how long an engine takes that nothing happens to.
        root: where data directories go.
    """

    portal_url: str
    truth: str
    counts: dict[str, dict[str, int]]
    seconds: float
    root: Path

    def engine(
        self, directory: Path, fault: Fault, seed: int, *options: str
    ) -> subprocess.Popen[str]:
        """Starts an engine on a data directory."""
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "kbo_pipeline_tests.tools.chaos.engine"),
                *(str(directory), self.portal_url, "--seed", str(seed)),
                *("--fault", fault.name, "--at", str(fault.at), "--delay", str(fault.delay)),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def reader(self, directory: Path) -> Iterator[list[str]]:
        """Reads ten times a second; yields a list that holds what went wrong, at the end."""
        problems: list[str] = []
        with reading(directory / "kbo.duckdb", self.counts) as reader:
            yield problems
        problems += reader.problems()

    def problems(self, directory: Path) -> list[str]:
        """What is wrong with a register that should be complete now."""
        core = Core(directory)
        found = []
        if core.content_hash() != self.truth:
            found.append("the content is another one")
        with core.read() as reader:
            found += ledger_problems(reader)
        left = [
            str(file.relative_to(directory))
            for file in directory.rglob("*")
            if file.suffix in (".part", ".unpacked", ".json", ".wal", ".tmp")
            or (file.parent.name == "staging" and file.is_file())
        ]
        if left:
            found.append(f"left behind: {', '.join(sorted(left))}")
        return found


class Reader:
    """Somebody who reads a published register ten times a second, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._problems: list[str] = []

    def problems(self) -> list[str]:
        """What went wrong so far: an error, or a mixture of two extracts."""
        if self._process.poll():
            self._end()
        return self._problems

    def stop(self) -> None:
        """Ends it."""
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.write("stop\n")
            self._process.stdin.flush()
        self._end()

    def _end(self) -> None:
        _, errors = self._process.communicate(timeout=_PATIENCE)
        if self._process.returncode != 0 and not self._problems:
            self._problems.append(f"reader: {errors.strip().splitlines()[-1:]}")


@contextmanager
def reading(database: Path, counts: dict[str, dict[str, int]]) -> Iterator[Reader]:
    """Somebody reads a register until the block ends.

    Args:
        database: the published file.
        counts: current rows by table, by extract number.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _READER, str(database), json.dumps(counts)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    reader = Reader(process)
    try:
        yield reader
    finally:
        reader.stop()


def ledger_problems(reader: duckdb.DuckDBPyConnection) -> list[str]:
    """What is wrong with the ledger of a register that should be complete now."""
    found = []
    keys = "job_id, table_name, batch_number, operation"
    twice = f"SELECT 1 FROM import_job_batches GROUP BY {keys} HAVING count(*) > 1"
    if fetch(reader, f"SELECT count(*) FROM ({twice})"):
        found.append("a key twice in the ledger")
    unfinished = "SELECT count(*) FROM {} WHERE status <> 'completed'"
    if fetch(reader, unfinished.format("import_jobs")):
        found.append("a job that is not completed")
    if fetch(reader, unfinished.format("import_job_batches")):
        found.append("a batch in the ledger that is not completed")
    return found


@contextmanager
def made_world(root: Path, updates: int = 2) -> Iterator[World]:
    """A portal with a Full and Updates, and one undisturbed import of them."""
    sample = Sample(enterprises=50, seed=11, default_share=0.1, change_shares=())
    offered = root / "offered"
    sample.write_full(offered, 140)
    counts = {}
    for number in range(140, 141 + updates):
        if number > 140:
            sample.write_update(offered, number)
        counts[str(number)] = read_counts(sample, number)
    with StandInPortal(offered) as portal:
        unfinished = World(portal.url, "", counts, 0.0, root)
        began = time.monotonic()
        engine = unfinished.engine(root / "truth", Fault("none"), 0)
        _, errors = engine.communicate(timeout=_PATIENCE)
        if engine.returncode != 0:
            raise RuntimeError(f"the undisturbed import failed: {errors}")
        seconds = time.monotonic() - began
        truth = Core(root / "truth").content_hash()
        yield World(portal.url, truth, counts, seconds, root)


def read_counts(sample: Sample, number: int) -> dict[str, int]:
    """How many rows each table has after an extract."""
    return {table.name: sum(1 for _ in sample.rows(table.name, number)) for table in ALL_TABLES}
