"""`make bench-search` on a small register."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.tools.bench.vocabulary import Vocabulary


def test_made_up_names_are_many_and_the_same_each_time() -> None:
    vocabulary, again = Vocabulary(1), Vocabulary(1)
    made = [vocabulary.enterprise() for _ in range(3000)]
    assert made == [again.enterprise() for _ in range(3000)]
    assert len({one.name for one in made}) > 2700
    words = {word for one in made for word in one.name.split()}
    assert len(words) > 2500


@pytest.mark.long
def test_each_kind_of_query_is_asked_and_nearly_all_are_answered(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kbo_pipeline_tests.tools.bench.search"),
            *("--enterprises", "3000", "--queries", "350", "--lines", "50"),
        ],
        env={**os.environ, "KBO_DATA_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[1] for row in rows] == ["50"] * 7 + ["350"]
    assert "matched: 50 lines, " in done.stdout
