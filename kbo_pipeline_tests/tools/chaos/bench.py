"""Where a stack is harmed: a data directory with its truth beside it, and somebody who reads.

One data directory lives through many repetitions, since a stack takes longer to start than an
Update to import: each offers another Update, and ends when it is published and all is at rest.
"""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.operate.runtime import runtime_prefix
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline.sample.portal import StandInPortal
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.tools.chaos.outages import Postgres
from kbo_pipeline_tests.tools.chaos.outcomes import Outcome, Perform, Row, Step
from kbo_pipeline_tests.tools.chaos.stack import Command, Ended, Stack, begun, running
from kbo_pipeline_tests.tools.chaos.world import (
    Reader,
    World,
    ledger_problems,
    read_counts,
    reading,
)

FULL = 140
GO_ON_SECONDS = 60.0
"""Promise P3: so long after a crash, or the restart that it needs, work goes on by itself."""

_PATIENCE = 300.0  # seconds for an extract, whatever died
_REST_SECONDS = 75.0  # after a publication until runs, slots and files are as they should be
_LOCK_SECONDS = 75.0  # the locks of ended runs go each minute
_MOST_UPDATES = 20  # of one data directory
_MOST_BROKEN = 3  # repetitions of a row; more would teach nothing
_LOOK_SECONDS = 0.25
_SETTINGS = {
    "KBO_USERNAME": "demo",
    "KBO_PASSWORD": "demo",
    "KBO_POLL_SECONDS": "3",
    "KBO_BATCH_ROWS": "5",  # ten batches an Update: something to be killed in
    "KBO_MAX_BATCHES": "10",
}


@dataclass
class Bench:
    """A running stack, and what should be in its register.

    Attributes:
        stack: the stack.
        offered: what the portal offers.
        sample: what is imported.
        truth: a register to which the same is imported and nothing happens.
        reader: somebody who reads all the time.
        postgres: the server that the stack uses; None for its embedded one.
        seconds: how long an import takes to which nothing happens, from each of its three runs to
            the next or to the publication.
        newest: the number of the newest extract that was made.
        hashes: the content of the register at each extract.
        outcome: what has come of the row.
        problems: what is wrong.
        said: about the newest repetition, in a few words.
        is_missed: the fault came too late for the newest repetition, which does not count.
    """

    stack: Stack
    offered: Path
    sample: Sample
    truth: Core
    reader: Reader
    postgres: Postgres | None
    outcome: Outcome
    seconds: list[float] = field(default_factory=list)
    newest: int = FULL
    hashes: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    said: str = ""
    is_missed: bool = False
    _seen: tuple[tuple[int, int], int] = ((0, 0), 0)

    @property
    def pipeline(self) -> Pipeline:
        """The data directory and the settings of the stack."""
        return self.stack.pipeline

    @property
    def key(self) -> str:
        """The key of the newest extract."""
        return f"{self.newest:04d}-{'full' if self.newest == FULL else 'update'}"

    def made(self) -> Path:
        """Makes the next extract, which nobody has been offered yet."""
        if self.hashes:
            self.newest += 1
        directory = self.truth.directory / "zips"
        directory.mkdir(parents=True, exist_ok=True)
        write = self.sample.write_update if self.hashes else self.sample.write_full
        zip_file = write(directory, self.newest)
        self.truth.import_zip(zip_file)
        self.hashes[self.newest] = self.truth.content_hash()
        return zip_file

    def offer(self, zip_file: Path) -> None:
        """Has the portal offer an extract; it stays where it is too."""
        unfinished = self.offered / "unfinished"
        shutil.copyfile(zip_file, unfinished)
        unfinished.rename(self.offered / zip_file.name)

    def begin(self) -> Path:
        """Offers the next extract, and waits until something works on it."""
        mark = self.stack.events.newest() or 0
        zip_file = self.made()
        self.offer(zip_file)
        self.wait_for_work(mark)
        return zip_file

    def wait_for_work(self, mark: int) -> None:
        """Waits for a sign of work that is newer than another one."""
        self.wait(lambda: (self.stack.events.newest() or 0) > mark, "the first sign of work")

    def reach_a_moment(self, chance: random.Random) -> None:
        """Waits until any moment of the import: of its three runs one, however slow the machine."""
        run = chance.randint(1, 3)
        self.wait_for_run(run)
        self.pause(chance.uniform(0.0, self.seconds[run - 1]))

    def wait_for_run(self, number: int) -> None:
        """Waits until so many runs of the newest extract are known, or it is published."""
        self.wait(
            lambda: self.stack.events.runs_of(self.key) >= number or self.is_published(),
            f"run {number} of {self.key}",
        )

    def pause(self, seconds: float) -> None:
        """Waits so long, but not beyond the publication of the newest extract."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.is_published():
            time.sleep(min(_LOOK_SECONDS, max(deadline - time.monotonic(), 0.0)))

    def wait(self, ready: Callable[[], object], what: str, patience: float = _PATIENCE) -> bool:
        """Waits until something is so; it is a problem when that takes too long."""
        deadline = time.monotonic() + patience
        while not ready():
            if time.monotonic() > deadline:
                self.problems.append(f"{what}: not in {patience:.0f} s")
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def is_published(self, number: int | None = None) -> bool:
        """Whether readers have an extract."""
        return self.newest_published() >= (number or self.newest)

    def newest_published(self) -> int:
        """The number of the extract that readers have; 0 for none."""
        try:
            stat = self.pipeline.database.stat()
        except FileNotFoundError:
            return 0
        if (file := (stat.st_ino, stat.st_mtime_ns)) != self._seen[0]:  # else it is the same one
            query = "SELECT max(extract_number) FROM import_jobs WHERE status = 'completed'"
            with self.pipeline.read() as reader:
                self._seen = file, int(reader.execute(query).fetchall()[0][0] or 0)
        return self._seen[1]

    def finish(self, fault_at: float, back_at: float, mark: int, *, promised: bool = True) -> None:
        """Waits, with nobody doing anything, until the newest extract is published.

        Args:
            fault_at: when the fault began, by the monotonic clock.
            back_at: when all was there again that does not come back by itself.
            mark: the newest sign of work before that.
            promised: work must go on within `GO_ON_SECONDS` of `back_at`.
        """
        went_on: float | None = None
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            published = self.is_published()
            if went_on is None and (published or (self.stack.events.newest() or 0) > mark):
                went_on = max(time.monotonic() - back_at, 0.0)
            if published:
                self._took(went_on if promised else None, time.monotonic() - fault_at)
                break
            if self.stack.ended() is not None:
                self.problems.append(f"kbo start has ended: {self.stack.last_line()}")
                return
            time.sleep(_LOOK_SECONDS)
        else:
            self.problems.append(f"{self.key} is not published after {_PATIENCE:.0f} s")
        if promised and went_on is not None and went_on > GO_ON_SECONDS:
            load = f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
            self.problems.append(f"{self.key}: work went on only after {went_on:.0f} s, {load}")

    def _took(self, went_on: float | None, published: float) -> None:
        self.outcome.took(went_on, published)
        self.said = f"published after {published:.0f} s"
        if went_on is not None:
            self.said = f"went on after {went_on:.0f} s, {self.said}"

    def kbo(self, *arguments: str | Path) -> Ended:
        """Runs a `kbo` command to its end; how it ends may be a problem."""
        return self.end(begun(self.pipeline, *arguments))

    def end(self, command: Command) -> Ended:
        """Waits for the end of a command; how it ends may be a problem."""
        ended = command.end()
        self.problems += ended.problems()
        what = f"kbo {ended.arguments[0]}"
        self.outcome.note(what if ended.is_done else f"{what} refused: {_general(ended.refusal)}")
        return ended

    def check(self) -> None:
        """Looks for everything that may be wrong once all should be published."""
        if not self.is_published():
            self.problems.append(f"{self.key} is not published")
        else:
            self._check_content()
        deadline = time.monotonic() + _REST_SECONDS
        while (found := self._unrest()) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        self.problems += found
        if unrecorded := self.stack.events.unrecorded(self.key):
            self.problems.append(f"{self.key}: Dagster misses {unrecorded} of what is applied")
        self.problems += self.reader.problems()

    def check_readers_have(self, number: int) -> None:
        """Compares what readers have with the truth at an extract."""
        if Core(self.pipeline.directory).content_hash() != self.hashes[number]:
            self.problems.append(f"the content is not that of {number}")

    def _check_content(self) -> None:
        self.check_readers_have(self.newest)
        with self.pipeline.read() as reader:
            self.problems += ledger_problems(reader)

    def _unrest(self) -> list[str]:
        left = [f"left behind: {file}" for file in self._left_behind()]
        return [*self.stack.events.restless(), *left]

    def _left_behind(self) -> Iterator[Path]:
        directory = self.pipeline.directory
        work = directory / "work"
        reports = (directory / "reports").glob("*")
        for top in (directory, directory / "downloads", work, work / "published", *reports):
            for file in top.glob("*"):
                if file.suffix in (".part", ".unpacked", ".json", ".wal", ".new", ".tmp"):
                    yield file.relative_to(directory)
        for top in (directory / "staging", work / "tmp", directory / "inbox" / "processing"):
            for file in top.glob("*"):
                if file.name != ".clock" and file.suffix != ".lock":
                    yield file.relative_to(directory)
        for file in (work / "runs").glob("*"):
            try:
                age = time.time() - file.stat().st_mtime
            except FileNotFoundError:
                continue
            if age > _LOCK_SECONDS + sum(self.seconds):
                yield file.relative_to(directory)
        if (work / "identity").exists():
            prefix = runtime_prefix(load_settings(self.pipeline.environment))
            parents = {work, Path(tempfile.gettempdir()), Path("/tmp")}
            runtime = [path for parent in parents for path in parent.glob(f"{prefix}*")]
            yield from runtime[1:]  # one is in use


Repetition = Callable[[Bench, random.Random], None]
"""Makes one fault happen, and waits until the newest extract should be published."""


def repeated(
    repetition: Repetition,
    *,
    settings: Mapping[str, str] | None = None,
    external: bool = False,
    most: int = _MOST_UPDATES,
    has_full: bool = True,
    extracts: int = 1,
) -> Perform:
    """A row that repeats something in data directories that each live for a while.

    Args:
        repetition: what is repeated.
        settings: of the stack, besides the usual ones.
        external: PostgreSQL is a server of its own, which can be stopped.
        most: repetitions in one data directory.
        has_full: the Full is imported before the first repetition.
        extracts: how many a repetition makes.
    """

    def run(world: World, row: Row, chance: random.Random, step: Step) -> Outcome:
        outcome = Outcome(row.name, row.times)
        broken = lives = 0
        while outcome.hits < row.times and broken < _MOST_BROKEN:
            lives += 1
            directory = world.root / f"{row.name.replace(' ', '-')[:30]}-{lives}"
            last = FULL + most * extracts
            with _bench(directory, outcome, last, settings or {}, external=external) as bench:
                if has_full:
                    _import_full(bench)
                for _ in range(min(most, row.times - outcome.hits)):
                    if bench.problems:
                        break
                    began = time.monotonic()
                    # Of its own: what one repetition draws must not depend on the one before.
                    bench.is_missed = False
                    repetition(bench, random.Random(chance.random()))
                    bench.check()
                    outcome.hits += not bench.is_missed
                    outcome.imports += extracts
                    seconds = time.monotonic() - began
                    step(f"{outcome.hits} of {row.times} in {seconds:.0f} s: {bench.said}")
            if bench.problems:
                broken += 1
                number = f"at repetition {max(outcome.hits, 1)}, see {directory}"
                outcome.problems += [*bench.problems, number]
            else:
                shutil.rmtree(directory)
        return outcome

    return run


@contextmanager
def _bench(
    directory: Path, outcome: Outcome, last: int, settings: Mapping[str, str], *, external: bool
) -> Iterator[Bench]:
    sample = Sample(enterprises=50, seed=12, default_share=0.1, change_shares=())
    offered = directory / "offered"
    offered.mkdir(parents=True)
    counts = {str(number): read_counts(sample, number) for number in range(FULL, last + 1)}
    with ExitStack() as opened:
        postgres = opened.enter_context(Postgres(directory / "server")) if external else None
        portal = opened.enter_context(StandInPortal(offered))
        pipeline = Pipeline(directory / "data", {"KBO_PORTAL_URL": portal.url, **_SETTINGS})
        pipeline.settings.update(settings)
        pipeline.directory.mkdir()
        if postgres is not None:
            pipeline.settings["DAGSTER_POSTGRES_URL"] = postgres.url
        stack = opened.enter_context(running(pipeline, postgres.url if postgres else None))
        reader = opened.enter_context(reading(pipeline.database, counts))
        bench = Bench(
            stack,
            offered,
            sample,
            Core(directory / "truth", batch_rows=200),
            reader,
            postgres,
            outcome,
        )
        yield bench
    bench.problems += [p for p in reader.problems() if p not in bench.problems]


def _import_full(bench: Bench) -> None:
    """Also measures how long the bench takes when nothing happens to it."""
    bench.offer(bench.made())
    marks = []
    for run in (1, 2, 3):
        bench.wait_for_run(run)
        marks.append(time.monotonic())
    bench.wait(bench.is_published, "the Full")
    marks.append(time.monotonic())
    bench.seconds = [later - before for before, later in pairwise(marks)]
    bench.check()


def _general(refusal: str) -> str:
    """A refusal without what differs each time: paths, numbers, ids."""
    words = refusal.split()
    shown = [w for w in words if not any(c.isdigit() for c in w) and "/" not in w]
    return " ".join(shown)
