"""What the process at work on an extract says of how far it is: a small file an extract.

It says so many times a second what would be an event each in Dagster's storage: the file is written
twice a second, which costs a tenth of a millisecond.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import dagster as dg

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import sanitize
from kbo_pipeline.operate.runs.claims import is_own
from kbo_pipeline.operate.runs.estimate import (
    DEFAULT_SECONDS,
    OWN_START_SECONDS,
    START_SECONDS,
    WORK_STAGES,
    Seconds,
    WorkStage,
    crept,
    seconds_left,
)

_WRITE_SECONDS, _TICK_SECONDS = 0.5, 0.25
_MOST_BYTES = 20_000
_FAILED_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Live:
    """How far the work on an extract is.

    Attributes:
        run_id: the run that says so.
        stage: what it is at.
        share: how much of that is done, 0 to 1.
        words: what is being done.
        usual: how long each stage usually takes; the same for the whole import, so that it never
            goes back.
        spent: seconds that each stage has taken so far.
        start_seconds: how long it takes until the next stage begins, when one ends.
        failed: batches that have failed in this run, each with its reason.
        at: when it was said, in seconds of the epoch.
    """

    run_id: str
    stage: WorkStage
    share: float
    words: str
    usual: Seconds
    spent: Seconds
    at: float
    start_seconds: float
    failed: Mapping[str, str] = field(default_factory=dict)


class Reporter:
    """Takes how far a stage is, from any thread; `reporting` makes it."""

    def __init__(
        self, file: Path, run_id: str, stage: WorkStage, before: Live, start_seconds: float
    ) -> None:
        self._start_seconds = start_seconds
        self._file, self._run_id, self._stage = file, run_id, stage
        self._lock = threading.Lock()
        self._usual, self._spent = before.usual, dict(before.spent)
        is_same = (before.run_id, before.stage) == (run_id, stage)
        now = time.time()
        # Batches that are committed stay so, whichever run goes on.
        goes_on = is_same or (stage in ("applying", "publishing") and before.stage == stage)
        self._share = before.share if goes_on else crept(now - before.at) if before.at else 0.0
        self._told, self._told_at = self._share, time.monotonic()
        self._failed = dict(before.failed) if is_same else {}
        if stage != "applying" and not is_same:
            self._spent.pop(stage, None)  # it begins anew
        self._began = now - self._spent.get(stage, 0.0)
        self._words, self._written = "", 0.0

    def __call__(self, share: float, words: str) -> None:
        """Notes a share, 0 to 1, and what is being done; a smaller share than before is not."""
        with self._lock:
            if share > self._told:
                self._told, self._told_at = min(1.0, share), time.monotonic()
                self._share = max(self._share, self._told)
            if words != self._words or time.monotonic() - self._written >= _WRITE_SECONDS:
                self._words = words
                self._write()

    def tick(self) -> None:
        """Lets a share of which nothing new is heard grow a little."""
        with self._lock:
            silent = time.monotonic() - self._told_at
            self._share = max(self._share, min(1.0, self._told + crept(silent)))
            self._write()

    def failed(self, batch: str, reason: str) -> None:
        """Notes that a batch has failed."""
        with self._lock:
            if len(self._failed) < _FAILED_SHOWN:
                self._failed[batch] = sanitize(reason)[:300]

    @property
    def spent(self) -> Seconds:
        """Seconds that each stage has taken so far."""
        return {**self._spent, self._stage: time.time() - self._began}

    @property
    def seconds_left(self) -> float:
        """Until the extract is published."""
        return seconds_left(self._usual, self._stage, self._share, self.spent, self._start_seconds)

    def end(self) -> None:
        """Writes what was said last."""
        with self._lock:
            self._written = 0.0
            self._write()

    def _write(self) -> None:
        if time.monotonic() - self._written < _WRITE_SECONDS:
            return
        self._written = time.monotonic()
        live = Live(
            self._run_id,
            self._stage,
            round(self._share, 4),
            sanitize(self._words)[:200],
            self._usual,
            {stage: round(seconds, 3) for stage, seconds in self.spent.items()},
            round(time.time(), 3),
            self._start_seconds,
            self._failed,
        )
        unfinished = self._file.with_suffix(".new")
        with suppress(OSError):  # a full disk is told by those whose files count
            unfinished.write_text(json.dumps(asdict(live)))
            os.replace(unfinished, self._file)


@contextmanager
def reporting(
    settings: Settings,
    key: ExtractKey,
    run: dg.DagsterRun,
    stage: WorkStage,
    usual: Seconds | None = None,
) -> Iterator[Reporter]:
    """Yields what takes how far a stage of an extract is. The caller has claimed the extract.

    Args:
        settings: say where the file is.
        key: the extract.
        run: the run at work.
        stage: what it does.
        usual: how long each stage usually takes, where an import begins; else that was noted then.
    """
    file = _file(settings, key)
    make_private(file.parent)
    before = read_live(settings, key)
    if before is None or (usual is not None and before.run_id != run.run_id):
        before = Live("", stage, 0.0, "", usual or DEFAULT_SECONDS[key.type], {}, 0.0, 0.0)
    start_seconds = OWN_START_SECONDS if is_own(run) else START_SECONDS
    reporter = Reporter(file, run.run_id, stage, before, start_seconds)
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_TICK_SECONDS):
            reporter.tick()

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield reporter
    finally:
        ended.set()
        ticker.join()
        reporter.end()


def read_live(settings: Settings, key: ExtractKey) -> Live | None:
    """What was said last of an extract, whether its run is at work or not; None for nothing."""
    try:
        with _file(settings, key).open("rb") as file:
            live = Live(**json.loads(file.read(_MOST_BYTES)))
        WORK_STAGES.index(live.stage)
        usual: Seconds = {stage: float(live.usual[stage]) for stage in WORK_STAGES}
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return replace(live, usual=usual)


def forget_live(settings: Settings, key: ExtractKey) -> None:
    """Removes what was said of an extract: its import is over."""
    _file(settings, key).unlink(missing_ok=True)


def _file(settings: Settings, key: ExtractKey) -> Path:
    return settings.work_dir / "progress" / f"{key}.json"
