"""What tests of several files begin with."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbo_pipeline.core import signals
from kbo_pipeline_tests.support import core
from kbo_pipeline_tests.support.lakes import ASKED_FOR
from kbo_pipeline_tests.support.pipeline import Pipeline

# A job that Dagster has executed in a process leaves SIGTERM there with what SIGINT had: ignored,
# by whatever it starts later too, where a shell without job control runs us in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Such a shell has the second ignored too, and nohup the first: what tests send must be seen.
for ignored in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(ignored, signal.SIG_DFL)

core.THREADS = 1

_MARKED = {"stack": "long", "browser": "browser"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks whole stacks as long, and the browser as such; both have 10 minutes for a test."""
    for item in items:
        layer = item.path.relative_to(Path(__file__).parent).parts[0]
        if layer in _MARKED:
            item.add_marker(_MARKED[layer])
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what is about a file as such, where registers are lakes.

    A signal that an earlier test has sent to this process does not stop an import of the next one.
    """
    signals.received()  # empties its pipe
    signals._came = False
    marker = item.get_closest_marker("file_only")
    if ASKED_FOR and marker is not None:
        pytest.skip(str(marker.args[0]))


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with its server kept up between commands."""
    pipeline = Pipeline(tmp_path)
    with pipeline.instance():
        yield pipeline
