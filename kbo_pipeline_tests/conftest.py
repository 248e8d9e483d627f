"""What tests of several files begin with."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbo_pipeline_tests.pipeline import Pipeline


@pytest.fixture(autouse=True)
def heard_signals() -> Iterator[None]:
    """What a test's process ignores at its end, later tests' processes would ignore too."""
    signals = {signal.SIGTERM, signal.SIGINT}
    before = {number for number in signals if signal.getsignal(number) is signal.SIG_IGN}
    yield
    ignored = {number for number in signals if signal.getsignal(number) is signal.SIG_IGN}
    for number in ignored - before:
        signal.signal(number, signal.SIG_DFL)
    assert ignored <= before


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with its server kept up between commands."""
    pipeline = Pipeline(tmp_path)
    with pipeline.instance():
        yield pipeline
