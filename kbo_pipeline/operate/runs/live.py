"""How far an import is, and how long the rest takes: by what it says itself, and by earlier ones.

The process at work on an extract says how far it is in a small file. It says so many times a second
what would be an event each in Dagster's storage: the file is written twice a second, which costs a
tenth of a millisecond.
"""

import datetime
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Literal

import dagster as dg

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import ExtractKey, ExtractType
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.progress import beside
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import sanitize
from kbo_pipeline.operate.runs.claims import is_own
from kbo_pipeline.operate.runs.progress import PUBLISHED

WorkStage = Literal["downloading", "staging", "applying", "publishing"]
"""What is done with an extract, one after the other."""

Stage = Literal["waiting", "downloading", "staging", "applying", "publishing", "done"]
"""What an extract is at."""

WORK_STAGES: tuple[WorkStage, ...] = ("downloading", "staging", "applying", "publishing")

Seconds = Mapping[WorkStage, float]
"""How long each stage takes."""

# Measured on 2 cores, from a ZIP that lies here: a Full of 100,000 enterprises, and a day's Update
# of a register of that size. The download is a guess: 4 MB/s.
DEFAULT_SECONDS: Mapping[ExtractType, Seconds] = {
    "full": {"downloading": 5.0, "staging": 6.0, "applying": 2.0, "publishing": 2.5},
    "update": {"downloading": 1.0, "staging": 1.0, "applying": 3.5, "publishing": 2.5},
}
"""How long the stages take where nothing has been imported yet."""

_LEARNED_FROM = 5
"""Extracts of a type whose times say how long the next one takes."""

START_SECONDS = 3.0
"""From the end of a stage to the begin of the next: a sensor looks, a run starts."""

OWN_START_SECONDS = 0.5
"""The same in a `kbo` command, which starts the runs itself."""

_MOST_ASSUMED, _ASSUMED_SECONDS = 0.03, 20.0
_START_WORK_SECONDS = 10.0
_LEAST_SECONDS = 0.1

_PRIOR = 0.1
"""The share of the whole whose usual time counts besides what was measured of this import."""


def usual_seconds(kind: ExtractType, imports: Sequence[Seconds]) -> Seconds:
    """How long each stage usually takes.

    Args:
        kind: of the extract.
        imports: how long each took for the last extracts of this type, the newest first.
    """
    recent = imports[:_LEARNED_FROM]
    return {
        stage: max(_LEAST_SECONDS, median(times))
        if (times := [seconds[stage] for seconds in recent if stage in seconds])
        else DEFAULT_SECONDS[kind][stage]
        for stage in WORK_STAGES
    }


def assumed_share(seconds: float, most: float = _MOST_ASSUMED) -> float:
    """How much of a stage is taken for done so long after it was last heard of: 3 % at most.

    What happens meanwhile cannot be counted, and yet a bar that stands still looks like one that
    hangs. It grows with time, so that nobody sees it go back.
    """
    return most * (1 - math.exp(-max(0.0, seconds) / _ASSUMED_SECONDS))


def share_at_start(seconds: float, usual: float) -> float:
    """How much of a stage is taken for done so long after the stage before it.

    As much as is done in ten seconds, at most half: of a stage that takes few seconds, 3 % are so
    little that the bar would stand still while its run starts.

    Args:
        seconds: since the end of the stage before.
        usual: how many seconds the stage usually takes.
    """
    return assumed_share(seconds, max(_MOST_ASSUMED, min(0.5, _START_WORK_SECONDS / usual)))


def overall_share(usual: Seconds, stage: Stage, share: float) -> float:
    """How much of an import is done, 0 to 1, when a share of a stage is."""
    if stage == "done":
        return 1.0
    if stage == "waiting":
        return 0.0
    place = WORK_STAGES.index(stage)
    done = sum(usual[before] for before in WORK_STAGES[:place]) + share * usual[stage]
    return done / sum(usual.values())


def seconds_left(
    usual: Seconds, stage: WorkStage, share: float, spent: Seconds, start_seconds: float = 0.0
) -> float:
    """How long the rest of an import takes.

    What was measured of this import says how much slower or faster than usual it is; of the stage
    at work the pace of that stage counts the more, the further it is.

    Args:
        usual: how long each stage usually takes.
        stage: the one at work.
        share: how much of it is done, 0 to 1.
        spent: seconds that this import has taken for each stage so far.
        start_seconds: it takes until applying begins, and publishing, when the stage before ends.
    """
    place = WORK_STAGES.index(stage)
    pace = _pace(usual, stage, share, spent)
    following = WORK_STAGES[place + 1 :]
    starts = sum(name in ("applying", "publishing") for name in following)
    later = sum(usual[name] for name in following) * pace + starts * start_seconds
    from_usual = usual[stage] * pace * (1 - share)
    if share <= 0 or stage not in spent:
        return later + from_usual
    from_here = spent[stage] / share * (1 - share)
    return later + share * from_here + (1 - share) * from_usual


def _pace(usual: Seconds, stage: WorkStage, share: float, spent: Seconds) -> float:
    """How long this import takes for what usually takes a second, the download left out.

    That the network is slow says nothing of this machine.
    """
    here = [name for name in WORK_STAGES[1:] if WORK_STAGES.index(name) < WORK_STAGES.index(stage)]
    done = sum(usual[name] for name in here if name in spent)
    taken = sum(spent[name] for name in here if name in spent)
    if stage != "downloading" and stage in spent:
        done += share * usual[stage]
        taken += spent[stage]
    prior = _PRIOR * sum(usual.values())
    return (taken + prior) / (done + prior)


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
        reached: how much of the whole earlier imports of this extract had done, 0 to 1, when this
            one began at the download again. It fills the rest, so that no bar goes back.
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
    reached: float = 0.0

    def overall(self, stage: Stage, share: float) -> float:
        """How much of the whole is done, 0 to 1, when a share of a stage is."""
        return self.reached + (1 - self.reached) * overall_share(self.usual, stage, share)


class Reporter:
    """Takes how far a stage is, from any thread; `reporting` makes it."""

    def __init__(
        self, file: Path, run_id: str, stage: WorkStage, before: Live, start_seconds: float
    ) -> None:
        self._start_seconds = start_seconds
        self._file, self._run_id, self._stage = file, run_id, stage
        self._lock = threading.Lock()
        self._usual, self._spent = before.usual, dict(before.spent)
        self._reached = before.reached
        is_same = (before.run_id, before.stage) == (run_id, stage)
        now = time.time()
        # Batches that are committed stay so, whichever run goes on.
        continues = is_same or (stage in ("applying", "publishing") and before.stage == stage)
        self._share = 0.0
        if continues:
            self._share = before.share
        elif before.at:
            self._share = share_at_start(now - before.at, self._usual[stage])
        self._noted, self._noted_at = self._share, time.monotonic()
        self._failed = dict(before.failed) if is_same else {}
        if stage != "applying" and not is_same:
            self._spent.pop(stage, None)  # it starts over
        self._began = now - self._spent.get(stage, 0.0)
        self._words, self._written = "", 0.0

    def __call__(self, share: float, words: str) -> None:
        """Notes a share, 0 to 1, and what is being done; a smaller share than before is not."""
        with self._lock:
            if share > self._noted:
                self._noted, self._noted_at = min(1.0, share), time.monotonic()
                self._share = max(self._share, self._noted)
            if words != self._words or time.monotonic() - self._written >= _WRITE_SECONDS:
                self._words = words
                self._write()

    def tick(self) -> None:
        """Lets a share of which nothing new is heard grow a little."""
        with self._lock:
            silent = time.monotonic() - self._noted_at
            self._share = max(self._share, min(1.0, self._noted + assumed_share(silent)))
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
            self._reached,
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
        reached = before.overall(before.stage, before.share) if before is not None else 0.0
        usual = usual or DEFAULT_SECONDS[key.type]
        before = Live("", stage, 0.0, "", usual, {}, 0.0, 0.0, reached=reached)
    start_seconds = OWN_START_SECONDS if is_own(run) else START_SECONDS
    reporter = Reporter(file, run.run_id, stage, before, start_seconds)

    def tick(ended: threading.Event) -> None:
        while not ended.wait(_TICK_SECONDS):
            reporter.tick()

    try:
        with beside(tick):
            yield reporter
    finally:
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


_SECONDS_OF = "seconds/"

_PUBLICATIONS = 40
"""That are looked at; an extract may be published again after a repair."""


@dataclass(frozen=True, slots=True)
class PastImport:
    """An extract that was published.

    Attributes:
        key: the extract.
        published_at: seconds of the epoch.
        run_id: the run that published it; empty when it was recorded without one.
        rows_changed: row versions that it opened and closed; None when nobody has counted.
        stages: how long each stage took.
        snapshot_date: the day whose end the data shows; None when that was not noted.
    """

    key: ExtractKey
    published_at: float
    run_id: str
    rows_changed: int | None
    stages: Seconds
    snapshot_date: datetime.date | None

    @property
    def seconds(self) -> float | None:
        """How long it took in all; None when that was not noted."""
        return sum(self.stages.values()) if self.stages else None


def past_imports(instance: dg.DagsterInstance, most: int = 30) -> list[PastImport]:
    """The extracts that were published last, the newest first."""
    imports: dict[ExtractKey, PastImport] = {}
    for record in instance.fetch_materializations(PUBLISHED, limit=_PUBLICATIONS).records:
        event = record.asset_materialization
        try:
            key = ExtractKey.parse(record.partition_key or "")
        except ExtractError:
            continue
        if event is None or key in imports:
            continue
        values = {name: entry.value for name, entry in event.metadata.items()}
        imports[key] = PastImport(
            key,
            record.timestamp,
            record.run_id,
            _whole(values.get("rows_changed")),
            _stages(values),
            _day(values.get("snapshot_date")),
        )
    return sorted(imports.values(), key=lambda past: past.key, reverse=True)[:most]


def usual_seconds_of(instance: dg.DagsterInstance, kind: ExtractType) -> Seconds:
    """How long each stage of an extract of this type usually takes."""
    past = [past.stages for past in past_imports(instance) if past.key.type == kind]
    return usual_seconds(kind, [stages for stages in past if stages])


def stages_metadata(spent: Seconds) -> dict[str, float]:
    """What a publication records of how long each stage took."""
    return {f"{_SECONDS_OF}{stage}": round(seconds, 3) for stage, seconds in spent.items()}


def _stages(values: Mapping[str, object]) -> Seconds:
    return {
        stage: float(seconds)
        for stage in WORK_STAGES
        if isinstance(seconds := values.get(f"{_SECONDS_OF}{stage}"), int | float)
    }


def _day(value: object) -> datetime.date | None:
    return datetime.date.fromisoformat(value) if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
