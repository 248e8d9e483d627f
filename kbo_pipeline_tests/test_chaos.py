"""The short version of `make chaos`: each fault of the core a few times."""

import re
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
    outcomes = re.findall(r"^(.+): (\d+) of (\d+), \d+ imports: ", done.stdout, re.MULTILINE)
    found = {name: (int(hits), int(times)) for name, hits, times in outcomes}
    assert {name: times for name, (_, times) in found.items()} == {
        row.name: row.times for row in engine_rows(short=True)
    }
    for name, (hits, times) in found.items():
        assert hits >= times, name  # a disk may be full once more than it was to be
