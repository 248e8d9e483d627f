"""The short version of `make chaos`: each fault of the core a few times."""

import json
import re
import subprocess
import sys

import pytest

from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.tools.chaos.outcomes import Outcome, Record, Row
from kbo_pipeline_tests.tools.chaos.plan import rows


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nothing_is_lost_or_doubled_whatever_dies() -> None:
    command = [sys.executable, "-m", "kbo_pipeline_tests.tools.chaos", "--short", "--core"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = re.findall(r"^(.+): (\d+) of (\d+), \d+ imports: ", done.stdout, re.MULTILINE)
    found = {name: (int(hits), int(times)) for name, hits, times in outcomes}
    assert {name: times for name, (_, times) in found.items()} == {
        row.name: row.times for row in rows(short=True) if not row.has_stack
    }
    for name, (hits, times) in found.items():
        assert hits >= times, name  # a disk may be full once more than it was to be


def test_a_result_is_read_as_it_was_written_and_stands_only_when_it_is_complete() -> None:
    outcome = Outcome("kill -9 of something", 20, hits=20, imports=20, went_on=1.5)
    outcome.took(0.5, 30.25)
    outcome.note("seen")
    record = Record(outcome, 7, "abc+", "2026-11-23T05:00:00+00:00", 12.5)
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert (outcome.went_on, outcome.published) == (1.5, 30.25)
    row: Row = next(row for row in rows() if row.has_stack)
    assert record.is_complete(row)
    outcome.problems.append("a job that is not completed")
    assert not record.is_complete(row)
    outcome.problems.clear()
    outcome.hits = row.times - 1
    assert not record.is_complete(row)


def test_rows_have_names_of_their_own_because_their_seeds_come_from_them() -> None:
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names)
