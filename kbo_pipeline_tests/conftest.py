"""What tests of several files begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kbo_pipeline_tests.pipeline import Pipeline


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with its server kept up between commands."""
    pipeline = Pipeline(tmp_path)
    with pipeline.instance():
        yield pipeline
