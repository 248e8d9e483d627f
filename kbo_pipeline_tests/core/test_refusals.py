"""A wrong password: one attempt, then after 1, 4 and 12 hours, whatever is started meanwhile."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kbo_pipeline.core.errors import LoginRefusedError, PortalError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.fetch.portal import PAUSES, Portal, Refusals
from kbo_pipeline.sample.portal import Answer
from kbo_pipeline_tests.support.faulty_portal import SHORT, Effect, Fault, Kind
from kbo_pipeline_tests.support.odd_portal import LANDINGS, OddPortal, wrong_password_answers
from kbo_pipeline_tests.support.zips import write_extract

HOUR = 3600.0
WRONG = "canary-wrong"


@dataclass
class World:
    portal: OddPortal
    memory: Path

    def list(self, password: str = WRONG) -> int:
        """A new process: nothing is remembered but what lies on disk."""
        with Portal(self.portal.url, "demo", password, memory=self.memory, limits=SHORT) as client:
            return len(client.list_extracts())

    def is_refused(self, password: str = WRONG) -> bool:
        """Whether it is refused; the line must say why and when it goes on."""
        with pytest.raises(LoginRefusedError) as error:
            self.list(password)
        assert not error.value.transient
        assert error.value.wait is not None and error.value.wait >= 0
        line = str(error.value)
        assert "KBO_USERNAME and KBO_PASSWORD" in line and "next attempt at" in line
        assert "canary" not in line and "\n" not in line
        return True

    def let_pass(self, seconds: float) -> None:
        kept = json.loads(self.memory.read_text())
        kept["refused_at"] -= seconds
        self.memory.write_text(json.dumps(kept))

    @property
    def attempts(self) -> int:
        return self.portal.count(Kind.LOGIN)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    offered = tmp_path / "offered"
    offered.mkdir()
    write_extract(offered, ExtractKey(140, "full"), {})
    with OddPortal(offered, accounts={"demo": "demo"}) as portal:
        yield World(portal, tmp_path / "data" / "work" / "portal-refused.json")


@pytest.mark.parametrize(
    "answer", wrong_password_answers().values(), ids=wrong_password_answers().keys()
)
def test_a_wrong_password_is_tried_once_however_it_is_refused(world: World, answer: Answer) -> None:
    world.portal.refusing = answer
    for _ in range(4):
        assert world.is_refused()
    assert world.attempts == 1


@pytest.mark.parametrize("landing", LANDINGS)
def test_the_right_password_is_let_in_after_a_wrong_one_wherever_it_leads(
    world: World, landing: str
) -> None:
    world.portal.landing = landing
    assert world.is_refused()
    assert world.list("demo") == 1
    assert world.attempts == 2
    assert not world.memory.exists()


def test_the_next_attempts_come_after_1_4_and_12_hours(world: World) -> None:
    assert [pause / HOUR for pause in PAUSES] == [1, 4, 12]
    for attempts, hours in enumerate((1, 4, 12, 12, 12), start=1):
        assert world.is_refused() and world.is_refused()
        assert world.attempts == attempts
        world.let_pass(hours * HOUR - 60)
        assert world.is_refused()
        assert world.attempts == attempts
        world.let_pass(61)


def test_another_password_or_name_or_portal_is_another_account(world: World) -> None:
    assert world.is_refused()
    assert world.is_refused("canary-wrong-2")
    assert world.is_refused("canary-wrong-2")
    assert world.attempts == 2
    file, url = world.memory, world.portal.url
    assert Refusals(file, url, "demo", "canary-wrong-2").next_at() is not None
    assert Refusals(file, url, "Demo", "canary-wrong-2").next_at() is None
    assert Refusals(file, f"{url}/", "demo", "canary-wrong-2").next_at() is None


def test_what_is_kept_holds_no_password_and_is_for_its_owner_alone(world: World) -> None:
    assert world.is_refused()
    kept = world.memory.read_text()
    assert "canary" not in kept and "demo" not in kept
    assert world.memory.stat().st_mode & 0o777 == 0o600
    assert world.memory.parent.stat().st_mode & 0o777 == 0o700
    first = json.loads(kept)
    world.let_pass(HOUR + 1)
    assert world.is_refused()
    second = json.loads(world.memory.read_text())
    assert first["salt"] != second["salt"] and first["account"] != second["account"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"salt": 1, "count": "x"}'])
def test_a_memory_that_makes_no_sense_costs_one_attempt(world: World, content: bytes) -> None:
    world.memory.parent.mkdir(parents=True)
    world.memory.write_bytes(content)
    assert world.is_refused() and world.is_refused()
    assert world.attempts == 1


def test_a_clock_that_was_wrong_makes_nobody_wait_for_years(world: World) -> None:
    assert world.is_refused()
    world.let_pass(-1e8)
    assert world.list("demo") == 1


def test_a_memory_that_cannot_be_read_is_told_and_nothing_is_tried(world: World) -> None:
    world.memory.mkdir(parents=True)
    with pytest.raises(StorageError, match=r"portal-refused\.json: .*see its permissions"):
        world.list()
    assert world.attempts == 0


def test_what_says_nothing_of_the_account_is_no_refusal(world: World) -> None:
    world.portal.add_fault(Fault(Kind.LIST, Effect.PAGE, times=2, body="maintenance"))
    with pytest.raises(PortalError, match="lists no extracts") as error:
        world.list("demo")
    assert error.value.transient
    assert world.list("demo") == 1


def test_an_error_that_the_login_leads_to_counts_though_the_list_fails(world: World) -> None:
    world.portal.add_fault(Fault(Kind.LIST, Effect.STATUS, times=None, status=404))
    assert world.is_refused() and world.is_refused()
    assert world.attempts == 1


ASKER = """
import sys
from pathlib import Path
from kbo_pipeline.fetch.portal import Portal
url, memory = sys.argv[1:]
with Portal(url, "demo", "wrong", memory=Path(memory)) as portal:
    portal.list_extracts()
"""


def test_processes_that_ask_at_the_same_time_try_once(world: World) -> None:
    command = [sys.executable, "-c", ASKER, world.portal.url, str(world.memory)]
    four = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[0] for process in four]
    assert all("LoginRefusedError" in line for line in said), said
    assert world.attempts == 1


def test_threads_that_ask_at_the_same_time_try_once(world: World) -> None:
    threads = [threading.Thread(target=world.is_refused) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert world.attempts == 1
