"""The short version of `make chaos`: each fault of the core a few times."""

import subprocess
import sys

import pytest

from kbo_pipeline_tests.chaos.kills import engine_rows
from kbo_pipeline_tests.pipeline import REPOSITORY


@pytest.mark.long
@pytest.mark.timeout(600)
def test_nothing_is_lost_or_doubled_whatever_dies() -> None:
    command = [sys.executable, "-m", "kbo_pipeline_tests.chaos", "--short", "--core"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in engine_rows(short=True):
        assert f"{row.name}: {row.times} of {row.times}" in done.stdout or row.name == "disk full"
