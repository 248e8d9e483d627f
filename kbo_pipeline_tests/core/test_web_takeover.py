"""Readers over HTTP while extracts are published, rolled back, and publishers are killed."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.bakery import BAKER, LATE, make_bakery
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.web import Web, serving

LAST = ExtractKey(142, "update")
PATHS = (
    "v1/source",
    f"v1/enterprises/{BAKER}",
    f"v1/enterprises/{LATE}",
    "v1/find?q=crumbs",
    "v1/find?q=celeste",
    "v1/changes?after=140",
)
KILLED = """
import sys
from pathlib import Path
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline_tests.support.core import Core
core = Core(Path(sys.argv[1]), batch_rows=1000)
print("ready", flush=True)
sys.stdin.readline()
core.rollback(ExtractKey(142, "update"))
core.import_zip(Path(sys.argv[2]))
"""


class Reader(threading.Thread):
    """Asks all paths again and again; what each said, by the extract that it named."""

    def __init__(self, web: Web) -> None:
        super().__init__()
        self.web, self.ended = Web(web.address), threading.Event()
        self.answers: dict[tuple[str, str], set[bytes]] = {}
        self.seen: list[str] = []
        self.errors: list[str] = []
        self.count = 0

    def run(self) -> None:
        tag = ""
        while not self.ended.is_set():
            for path in PATHS:
                answer = self.web.get(path, headers={"If-None-Match": tag} if tag else {})
                self.count += 1
                if answer.status_code == 304:
                    continue
                if answer.status_code != 200:
                    self.errors.append(f"{path}: {answer.status_code} {answer.text}")
                    continue
                found = answer.json()
                extract = found["source"]["extract"]
                self.answers.setdefault((extract, path), set()).add(answer.content)
                self.seen.append(extract)
            tag = answer.headers.get("etag", "") if tag == "" else ""


def kill_one(core: Core, zip_file: Path, moment: float) -> None:
    """Rolls the last extract back and imports it again, by a process that is killed meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(core.directory), str(zip_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.file_only("of a lake, a new publication is seen after ten seconds")
@pytest.mark.parametrize(
    ("rounds", "killed"),
    [
        (2, 1),
        pytest.param(40, 20, marks=(pytest.mark.long, pytest.mark.rare, pytest.mark.timeout(3600))),
    ],
)
def test_no_error_and_no_mixture_while_extracts_come_and_go(
    tmp_path: Path, rounds: int, killed: int
) -> None:
    core = make_bakery(tmp_path, Core(tmp_path / "core", batch_rows=1000))
    zip_file = next(tmp_path.glob("*0142*.zip"))
    tags: list[str] = []
    draw = random.Random(rounds)
    with serving(core) as web:
        readers = [Reader(web) for _ in range(4)]
        for reader in readers:
            reader.start()
        publications = 0
        for _ in range(rounds):
            core.rollback(LAST)
            tags.append(assert_seen(web, "0141-update"))
            core.import_zip(zip_file)
            tags.append(assert_seen(web, "0142-update"))
            publications += 2
        for _ in range(killed):
            kill_one(core, zip_file, draw.uniform(0.05, 0.9))
            core.rollback(LAST)
            core.import_zip(zip_file)
            assert_seen(web, "0142-update")
            publications += 2
        for reader in readers:
            reader.ended.set()
            reader.join()
        answers: dict[tuple[str, str], set[bytes]] = {}
        for reader in readers:
            assert reader.errors == []
            assert {*reader.seen} == {"0141-update", "0142-update"}
            for place, found in reader.answers.items():
                answers.setdefault(place, set()).update(found)
        print(f"{sum(r.count for r in readers)} answers during {publications} publications")
    assert len(set(tags)) == rounds + 1  # what comes anew is published anew, what was before is not
    # One extract, one address, one answer: but for cursors, which know what was undone.
    assert {place: len(found) for place, found in answers.items()} == dict.fromkeys(answers, 1)
    assert len(answers) == 2 * len(PATHS)


def assert_seen(web: Web, extract: str) -> str:
    """Whoever asks sees an extract within a second of its publication; its tag."""
    deadline = time.monotonic() + 1.0
    while True:
        answer = web.get("v1/source")
        found = answer.json()["source"]["extract"]
        if found == extract:
            return answer.headers["etag"]
        assert time.monotonic() < deadline, f"{found} instead of {extract}"
