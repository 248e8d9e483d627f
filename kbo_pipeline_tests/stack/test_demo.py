"""The demo that is stopped half-way."""

import signal
from pathlib import Path

import psutil
import pytest

from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.processes import started, wait_until


def processes_in(directory: Path) -> list[str]:
    """The programs whose working directory is there."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(directory):
                found.append(process.name())
        except psutil.Error:
            continue
    return found


@pytest.mark.rare
def test_a_stopped_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "settings")
    where = tmp_path / "cloned"
    where.mkdir()
    with started(pipeline, "kbo_pipeline.commands.demo", cwd=where) as demo:
        log = where / "data" / "demo" / "start.log"
        wait_until(
            lambda: log.exists() and "(Ctrl-C ends everything)" in log.read_text(), "a start", demo
        )
        assert len(processes_in(where)) > 3
        assert demo.end(signal.SIGTERM, whole_group=True) == 1
        assert demo.says("demo: stopped; make demo continues from here")
    wait_until(lambda: not processes_in(where), "an end of all")
