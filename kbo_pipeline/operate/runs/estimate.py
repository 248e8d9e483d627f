"""How far an import is in all, and how long the rest takes. No Dagster, no I/O."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

from kbo_pipeline.core.extracts import ExtractType

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
    "full": {"downloading": 5.0, "staging": 16.0, "applying": 14.0, "publishing": 10.0},
    "update": {"downloading": 1.0, "staging": 3.0, "applying": 6.0, "publishing": 4.0},
}
"""How long the stages take where nothing has been imported yet."""

_LEARNED_FROM = 5
"""Extracts of a type whose times say how long the next one takes."""

START_SECONDS = 5.0
"""From the end of a stage to the begin of the next: a sensor looks, a run starts."""

OWN_START_SECONDS = 0.5
"""The same in a `kbo` command, which starts the runs itself."""

_CREPT, _CREPT_SECONDS = 0.03, 20.0

_LEAST_SECONDS = 0.1
_PRIOR = 0.1
"""The share of the whole whose usual time counts besides what was measured of this import."""


def usual_seconds(kind: ExtractType, imports: Sequence[Seconds]) -> Seconds:
    """How long each stage usually takes.

    Args:
        kind: of the extract.
        imports: how long each took for the last extracts of this type, the newest first.
    """
    known = imports[:_LEARNED_FROM]
    return {
        stage: max(_LEAST_SECONDS, median(times))
        if (times := [seconds[stage] for seconds in known if stage in seconds])
        else DEFAULT_SECONDS[kind][stage]
        for stage in WORK_STAGES
    }


def crept(seconds: float) -> float:
    """How much of a stage is taken for done so long after it was last heard of: 3 % at most.

    What happens meanwhile cannot be counted, and yet a bar that stands still looks like one that
    hangs. It grows with time, so that nobody sees it go back.
    """
    return _CREPT * (1 - math.exp(-max(0.0, seconds) / _CREPT_SECONDS))


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
