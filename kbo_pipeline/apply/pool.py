"""Several processes that apply the batches of one extract at the same time. No Dagster.

Batches are given out in spans of some that follow one another: a worker finds what a span changes
in one look at the register, as one that is alone does for all batches. Spans are so short that
batches which are at work at the same time have different turns (`sql.shared`).
"""

import json
import os
import random
import selectors
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby

from kbo_pipeline.apply.lake_sql import TURNS
from kbo_pipeline.apply.ledger import BatchChange
from kbo_pipeline.apply.worker import Task, TransientError, read_answer
from kbo_pipeline.core.errors import KboError
from kbo_pipeline.core.extracts import Batch, BatchKey, ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.processes.parent_death import die_with_parent_command

_LOOK_SECONDS = 1.0
"""How often it is asked whether to stop, while nothing happens."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch in the end.

    Attributes:
        batch: the batch.
        attempts: how many there were.
        result: what it did; or why its last attempt failed.
    """

    batch: Batch
    attempts: int
    result: BatchChange | KboError


@dataclass(slots=True)
class _Worker:
    """A process, what it is at, and what is left of its span."""

    process: "subprocess.Popen[bytes]"
    span: Sequence[Batch]
    rest: deque[Batch]
    batch: Batch | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class _Retry:
    """A batch that is tried again, not before an instant of the monotonic clock."""

    due: float
    batch: Batch
    attempt: int


class ApplyPool:
    """The workers of an extract, as many as `KBO_APPLY_WORKERS`; none is left after the block.

    A worker that is killed is replaced, and its batch tried again: the ledger tells whether it had
    been committed.
    """

    def __init__(
        self,
        settings: Settings,
        key: ExtractKey,
        batches: Sequence[Batch],
        *,
        attempts: int = 5,
        first_wait: float = 2.0,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Begins with no process; each starts when there is something for it.

        Args:
            settings: say where everything is, and how many workers there are.
            key: the extract, whose job is open.
            batches: which of its batches are to be applied.
            attempts: how often each is tried at most.
            first_wait: seconds before the second attempt; doubles each time.
            report: takes a line when an attempt has failed and there will be another.
        """
        self._settings, self._key, self._report = settings, key, report
        self._attempts, self._first_wait = attempts, first_wait
        self._count = min(settings.apply_workers, len(batches))
        length = max(1, TURNS // settings.apply_workers)
        self._spans = deque(_spans(batches, length))
        self._retries: list[_Retry] = []
        self._workers: dict[int, _Worker] = {}  # by position
        self._stops_at: float | None = None

    def __enter__(self) -> "ApplyPool":
        return self

    def __exit__(self, *raised: object) -> None:
        """Ends the processes; what they have not committed is not done."""
        for position in [*self._workers]:
            self._end(position)

    @property
    def pids(self) -> list[int]:
        """The processes there are now."""
        return [worker.process.pid for worker in self._workers.values()]

    @property
    def is_stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stops_at is not None

    def stop(self, patience: float) -> None:
        """Lets no batch begin any more; those at work have so many seconds to end."""
        self._stops_at = time.monotonic() + patience

    def next_outcome(
        self, may_begin: Callable[[], bool] = lambda: True, look: Callable[[], None] = lambda: None
    ) -> Outcome | None:
        """Waits until a batch has come to its end: applied, or failed for the last time.

        Args:
            may_begin: is asked before a batch begins; none does any more once it says no.
            look: is called each second.

        Returns:
            What became of it; None when no batch is left, or none may go on.
        """
        while True:
            look()
            self._give_out(may_begin)
            if self._is_over():
                return None
            for position in self._answered():
                outcome = self._take_answer(position)
                if outcome is not None:
                    return outcome

    def _is_over(self) -> bool:
        is_at_work = any(worker.batch for worker in self._workers.values())
        if self._stops_at is not None:
            return not is_at_work or time.monotonic() >= self._stops_at
        return not (is_at_work or self._spans or self._retries)

    def _give_out(self, may_begin: Callable[[], bool]) -> None:
        """Gives a batch to each worker that has none."""
        for position in range(self._count):
            worker = self._workers.get(position)
            if self.is_stopped or (worker is not None and worker.batch is not None):
                continue
            if not (worker is not None and worker.rest) and not self._spans and not self._due():
                continue
            if not may_begin():
                self.stop(float("inf"))
                return
            if worker is None:
                worker = self._workers[position] = self._start(position)
            self._give(worker)

    def _due(self) -> list[_Retry]:
        return [retry for retry in self._retries if retry.due <= time.monotonic()]

    def _give(self, worker: _Worker) -> None:
        """Gives a worker the next batch of its span, or one that is due again, or a new span."""
        worker.attempt = 1
        if not worker.rest:
            due = self._due()
            if due:
                self._retries.remove(due[0])
                worker.attempt, worker.span = due[0].attempt, [due[0].batch]
            else:
                worker.span = self._spans.popleft()
            worker.rest = deque(worker.span)
        worker.batch = worker.rest.popleft()
        task = Task(
            worker.batch.number, worker.attempt, worker.span[0].number, worker.span[-1].number
        )
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: its answer will be that
            worker.process.stdin.write(f"{json.dumps(asdict(task))}\n".encode())
            worker.process.stdin.flush()

    def _start(self, position: int) -> _Worker:
        module = ("kbo_pipeline.apply.worker", str(self._key), str(position))
        process = subprocess.Popen(
            die_with_parent_command(*module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self._settings.environment},
        )
        return _Worker(process, (), deque())

    def _answered(self) -> list[int]:
        """The positions of workers that have answered, or died; waits a while for one."""
        with selectors.DefaultSelector() as selector:
            for position, worker in self._workers.items():
                if worker.batch is not None and worker.process.stdout is not None:
                    selector.register(worker.process.stdout, selectors.EVENT_READ, position)
            if not selector.get_map():  # all that is left is not due yet
                time.sleep(min(_LOOK_SECONDS, 0.1))
                return []
            return [key.data for key, _ in selector.select(_LOOK_SECONDS)]

    def _take_answer(self, position: int) -> Outcome | None:
        """What became of the batch of a worker; None when it is tried again."""
        worker = self._workers[position]
        batch, attempt = worker.batch, worker.attempt
        assert batch is not None and worker.process.stdout is not None
        line = worker.process.stdout.readline()
        if line.endswith(b"\n"):
            result = read_answer(line)
        else:
            result = TransientError(f"its worker, process {worker.process.pid}, has died")
        worker.batch = None
        if isinstance(result, BatchChange):
            return Outcome(batch, attempt, result)
        if worker.rest:
            self._spans.appendleft([*worker.rest])
        self._end(position)
        if not result.transient or attempt == self._attempts:
            return Outcome(batch, attempt, result)
        wait = self._first_wait * 2 ** (attempt - 1) if line else 0.0
        self._report(f"{BatchKey(self._key, batch.number)}: attempt {attempt} failed: {result}")
        due = time.monotonic() + wait + random.uniform(0, wait / 2)
        self._retries.append(_Retry(due, batch, attempt + 1))
        return None

    def _end(self, position: int) -> None:
        process = self._workers.pop(position).process
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # of a task that it did not live to read
                if pipe is not None:
                    pipe.close()
        process.wait()
        spilled = self._settings.temporary_dir / f"apply-{position}"
        shutil.rmtree(spilled, ignore_errors=True)


def _spans(batches: Sequence[Batch], length: int) -> list[list[Batch]]:
    """Batches in lists of so many at most, without a gap in any."""
    in_order = sorted(batches, key=lambda batch: batch.number)
    found = []
    for _, run in groupby(enumerate(in_order), key=lambda pair: pair[1].number - pair[0]):
        following = [batch for _, batch in run]
        found += [following[at : at + length] for at in range(0, len(following), length)]
    return found
