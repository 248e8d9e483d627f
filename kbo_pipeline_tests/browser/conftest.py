"""One `kbo start` and one chromium for each module, whose `pipeline` the server works on."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from kbo_pipeline_tests.support.browser import running_browser
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.server import Server, running_server


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Server]:
    with running_server(pipeline) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser
