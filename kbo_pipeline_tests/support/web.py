"""A running `kbo serve`, and what it is asked."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core


@dataclass
class Web:
    """A server by its address; connections are kept."""

    address: str
    session: requests.Session = field(default_factory=requests.Session)

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> requests.Response:
        address = f"{self.address}/kbo" + (f"/{path}" if path else "")
        return self.session.get(address, headers=headers, timeout=60)

    def post(self, path: str, body: Any) -> requests.Response:
        return self.session.post(f"{self.address}/kbo/{path}", json=body, timeout=60)

    def data(self, path: str) -> Any:
        """What an answer holds; it must be one."""
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        return answer.json()["data"]

    def problem(self, path: str, *, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Status and line of what is no answer."""
        answer = self.get(path, headers=headers)
        return problem_of(answer)


def problem_of(answer: requests.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    found = answer.json()
    assert found["status"] == answer.status_code
    assert (found["type"], found["title"] != "") == ("about:blank", True)
    assert len(found["detail"].splitlines()) == 1
    return found["status"], found["detail"]


@contextmanager
def serving(core: Core, *options: str, **settings: str) -> Iterator[Web]:
    """Runs `kbo serve` on a free port until the block ends; it must end cleanly on Ctrl-C."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("KBO_")}
    core.directory.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "kbo_pipeline.cli", "serve", "--port", "0", *options],
        env={**inherited, **core.settings, **settings},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=(core.directory / "serve.log").open("w"),
        text=True,
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        found = re.match(r"(http://\S+?:\d+)(\S*)/kbo", process.stdout.readline())
        assert found, (core.directory / "serve.log").read_text()
        yield Web(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert (code, (core.directory / "serve.log").read_text()) == (0, "")


def samples(text: str) -> dict[tuple[str, ...], float]:
    """The samples of OpenMetrics, by name and values of labels, as its own parser reads them."""
    parse: Callable[[str], Iterable[Metric]] = text_string_to_metric_families
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(text)
        for sample in family.samples
    }
