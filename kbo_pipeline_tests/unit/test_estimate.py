"""How far an import is in all and how long the rest takes: never back, near the truth."""

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbo_pipeline.core.extracts import ExtractType
from kbo_pipeline.operate.runs.live import (
    DEFAULT_SECONDS,
    WORK_STAGES,
    WorkStage,
    assumed_share,
    overall_share,
    seconds_left,
    share_at_start,
    usual_seconds,
)

SECONDS = st.fixed_dictionaries({stage: st.floats(0.1, 1e5) for stage in WORK_STAGES})
PLACES = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=2, max_size=30)


@given(usual=SECONDS, places=PLACES)
def test_what_is_done_never_goes_back_as_stages_go_on(
    usual: Mapping[WorkStage, float], places: list[tuple[int, float]]
) -> None:
    shares = [overall_share(usual, WORK_STAGES[stage], share) for stage, share in sorted(places)]
    assert all(before <= after + 1e-9 for before, after in itertools.pairwise(shares))
    assert shares[0] >= 0 and shares[-1] <= overall_share(usual, "done", 0.0) + 1e-9


@given(usual=SECONDS)
def test_each_stage_begins_where_the_one_before_ends(usual: Mapping[WorkStage, float]) -> None:
    for before, after in itertools.pairwise(WORK_STAGES):
        end, begin = overall_share(usual, before, 1.0), overall_share(usual, after, 0.0)
        assert end == pytest.approx(begin)
    assert overall_share(usual, "downloading", 0.0) == 0
    assert overall_share(usual, "publishing", 1.0) == pytest.approx(1)


@given(usual=SECONDS, pace=st.floats(0.1, 10), stage=st.sampled_from(WORK_STAGES[1:]))
def test_at_any_pace_the_time_left_is_within_30_percent_at_half_of_a_stage(
    usual: Mapping[WorkStage, float], pace: float, stage: WorkStage
) -> None:
    place = WORK_STAGES.index(stage)
    spent = {name: usual[name] * pace for name in WORK_STAGES[:place]} | {
        stage: usual[stage] * pace / 2
    }
    whole = sum(usual.values())
    rest = usual[stage] / 2 + sum(usual[name] for name in WORK_STAGES[place + 1 :])
    here = sum(usual[name] for name in WORK_STAGES[1:place]) + usual[stage] / 2
    found = seconds_left(usual, stage, 0.5, spent)
    # The usual pace counts as much as a tenth of the whole.
    believed = (here * pace + whole / 10) / (here + whole / 10)
    assert min(pace, believed) * rest * 0.99 <= found <= max(pace, believed) * rest * 1.01


@given(
    usual=SECONDS,
    stage=st.sampled_from(WORK_STAGES),
    share=st.floats(0, 1),
    spent=st.dictionaries(st.sampled_from(WORK_STAGES), st.floats(0, 1e6)),
)
def test_the_time_left_is_never_less_than_none(
    usual: Mapping[WorkStage, float],
    stage: WorkStage,
    share: float,
    spent: Mapping[WorkStage, float],
) -> None:
    assert seconds_left(usual, stage, share, spent) >= 0


def test_a_slow_network_says_nothing_of_this_machine() -> None:
    usual: Mapping[WorkStage, float] = {
        "downloading": 5.0,
        "staging": 16.0,
        "applying": 5.0,
        "publishing": 5.0,
    }
    quick = seconds_left(usual, "staging", 0.5, {"downloading": 1.0, "staging": 8.0})
    slow = seconds_left(usual, "staging", 0.5, {"downloading": 600.0, "staging": 8.0})
    assert quick == slow == pytest.approx(8 + 5 + 5)
    assert seconds_left(usual, "staging", 0.5, {"staging": 8.0}, 5.0) == pytest.approx(quick + 10)


def test_the_usual_time_is_the_median_of_the_last_five_of_a_type() -> None:
    times = [5.0, 1.0, 3.0, 2.0, 4.0, 100.0, 100.0]
    usual = usual_seconds("update", [{"staging": seconds} for seconds in times])
    assert usual["staging"] == 3.0
    assert usual["applying"] == DEFAULT_SECONDS["update"]["applying"]
    assert usual_seconds("full", []) == DEFAULT_SECONDS["full"]


def test_what_cannot_be_counted_grows_by_three_percent_at_most() -> None:
    shares = [assumed_share(seconds) for seconds in (-1, 0, 1, 5, 20, 100, 1e6)]
    assert shares == sorted(shares)
    assert shares[1] == 0
    assert shares[2] > 0
    assert shares[-1] == pytest.approx(0.03)


@pytest.mark.parametrize("kind", ["full", "update"])
@pytest.mark.parametrize("stage", ["staging", "applying", "publishing"])
@pytest.mark.parametrize("times", [1, 10, 30, 1000])
def test_the_bar_moves_while_a_run_starts_and_is_soon_overtaken(
    kind: ExtractType, stage: WorkStage, times: int
) -> None:
    usual = {name: times * seconds for name, seconds in DEFAULT_SECONDS[kind].items()}
    shares = [share_at_start(seconds, usual[stage]) for seconds in range(0, 8, 2)]
    shown = [round(100 * overall_share(usual, stage, share), 1) for share in shares]
    assert times > 30 or shown == sorted(set(shown))  # each 2 s another one
    waited_for = shares[-1] * usual[stage]  # until the run has done that much
    assert waited_for < max(3.0, 0.01 * usual[stage])
    assert share_at_start(1e6, usual[stage]) <= 0.5
