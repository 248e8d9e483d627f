"""Random chains of extracts, rollbacks, repairs and rebuilds; `tools/chains` says what they do."""

import os

import pytest

from kbo_pipeline_tests.tools.chains.__main__ import play

pytestmark = pytest.mark.file_only("a hand changes the file of a register")

LONG = pytest.param(
    range(1000, 1000 + int(os.environ.get("PROPERTY_EXAMPLES", "50"))),
    marks=(pytest.mark.long, pytest.mark.rare, pytest.mark.property),
    id="long",
)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seeds", [pytest.param(range(2), id="short"), LONG])
def test_whatever_happens_readers_deltas_and_the_feed_lead_to_the_model(seeds: range) -> None:
    for seed in seeds:
        counts = play(seed)
        assert counts["registers"] and counts["pairs of states"], f"seed {seed}"
