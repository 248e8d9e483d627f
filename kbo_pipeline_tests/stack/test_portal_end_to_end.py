"""From the portal to the published register with nobody there: the real daemon, a real server.

The faults, marked `rare`, are waited out as the pipeline waits them out: half an hour.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kbo_pipeline.core.extracts import ExtractKey, key_in_file_name
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline_tests.support.core import rows_of, sorted_rows
from kbo_pipeline_tests.support.faulty_portal import Effect, Fault, FaultyPortal, Kind
from kbo_pipeline_tests.support.lakes import ASKED_FOR
from kbo_pipeline_tests.support.pipeline import Pipeline, fetch
from kbo_pipeline_tests.support.server import Server, running_server

POLL_SECONDS = 5
PATIENCE = 900.0 if ASKED_FOR else 300.0  # seconds, for a loaded machine
SAMPLE = Sample(enterprises=60, seed=5, default_share=0.05)
LOGIN, LIST, ZIP = Kind.LOGIN, Kind.LIST, Kind.DOWNLOAD


@dataclass
class Portal:
    """The stand-in portal, what it offers, and the extracts that are not offered yet."""

    stand_in: FaultyPortal
    offered: Path
    made: Path

    def offer(self, *names: str) -> None:
        """Puts extracts there, complete at once."""
        for key in names:
            (file,) = (f for f in self.made.iterdir() if str(key_in_file_name(f.name)) == key)
            shutil.copyfile(file, self.offered / f"{file.name}.new")
            (self.offered / f"{file.name}.new").rename(self.offered / file.name)


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Portal]:
    directory = tmp_path_factory.mktemp("portal")
    (directory / "offered").mkdir()
    write_sample(directory / "made", SAMPLE, updates=30)
    SAMPLE.write_full(directory / "made", 144)
    with FaultyPortal(directory / "offered") as stand_in:
        yield Portal(stand_in, directory / "offered", directory / "made")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, portal: Portal) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("data"), account(portal.stand_in))


@pytest.fixture(scope="module")
def server(pipeline: Pipeline, portal: Portal) -> Iterator[Server]:
    portal.offer("0140-full", "0141-update")
    with running_server(pipeline) as server:
        yield server


def account(stand_in: FaultyPortal, password: str = "demo") -> dict[str, str]:
    return {
        "KBO_PORTAL_URL": stand_in.url,
        "KBO_USERNAME": "demo",
        "KBO_PASSWORD": password,
        "KBO_POLL_SECONDS": str(POLL_SECONDS),
    }


def published(pipeline: Pipeline) -> list[str]:
    """Keys of the published extracts, in the order of their publication."""
    if not pipeline.is_published:
        return []
    with pipeline.read() as reader:
        found = reader.execute(
            "SELECT id FROM import_jobs WHERE status = 'completed' ORDER BY completed_at"
        )
        return [key for (key,) in found.fetchall()]


def wait_for(pipeline: Pipeline, key: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while key not in published(pipeline):
        assert time.monotonic() < deadline, f"{key}: {pipeline.kbo('status').stdout}"
        time.sleep(0.5)


def check_register(pipeline: Pipeline, number: int) -> None:
    """All eight tables equal what the generator says of this number; no version is there twice."""
    with pipeline.read() as reader:
        for table in ALL_TABLES:
            expected = sorted_rows(SAMPLE.rows(table.name, number))
            assert rows_of(reader, table, f"current.{table.name}") == expected
            columns = ", ".join(column.name for column in table.columns)
            doubled = f"SELECT 1 FROM main.{table.name} WHERE _is_current GROUP BY {columns}"
            twice = f"SELECT count(*) FROM ({doubled} HAVING count(*) > 1)"
            assert fetch(reader, twice) == 0


@pytest.mark.rare
def test_what_is_on_offer_is_published_untouched_and_so_is_what_comes_later(
    server: Server, pipeline: Pipeline, portal: Portal
) -> None:
    wait_for(pipeline, "0141-update")
    check_register(pipeline, 141)
    portal.offer("0142-update")
    wait_for(pipeline, "0142-update")
    check_register(pipeline, 142)
    assert published(pipeline) == ["0140-full", "0141-update", "0142-update"]
    staged = [server.extract_of(run) for run in server.runs("stage_extract")]
    assert staged == ["0140-full", "0141-update", "0142-update"]
    said = "0142-update is the newest: nothing to do"
    wait_until(lambda: said in pipeline.kbo("status").stdout)  # which the next poll finds out


@pytest.mark.rare
def test_a_gap_is_bridged_by_a_full_and_the_reason_is_said_whatever_the_portal_does(
    server: Server, pipeline: Pipeline, portal: Portal
) -> None:
    portal.offer("0142-update")  # another test may have, which does no harm
    wait_for(pipeline, "0142-update")
    faults = (Fault(LIST, Effect.LOGIN_PAGE), Fault(ZIP, Effect.CUT, after=700))
    for fault in faults:
        portal.stand_in.add_fault(fault)
    portal.offer("0144-update", "0144-full")  # 0143 is not there
    wait_for(pipeline, "0144-full")
    check_register(pipeline, 144)
    assert all(portal.stand_in.next_fault(fault.kind) is None for fault in faults)
    assert published(pipeline)[-2:] == ["0142-update", "0144-full"]
    said = "0143-update is not on offer: 0144-full takes its place"
    assert any(said in tick for tick in server.ticks("kbo_extract_sensor"))


FAULTS: dict[str, list[Fault]] = {
    "a login page instead of the listing": [Fault(LIST, Effect.LOGIN_PAGE)],
    "a login page instead of the ZIP": [Fault(ZIP, Effect.LOGIN_PAGE)],
    "the session ends before the listing": [Fault(LIST, Effect.EXPIRE)],
    "the session ends before the ZIP": [Fault(ZIP, Effect.EXPIRE)],
    "401 at the listing": [Fault(LIST, Effect.STATUS, status=401)],
    "403 at the ZIP": [Fault(ZIP, Effect.STATUS, status=403)],
    "404 at the ZIP": [Fault(ZIP, Effect.STATUS, status=404)],
    "429 at the ZIP": [Fault(ZIP, Effect.STATUS, status=429)],
    "429 with Retry-After": [Fault(ZIP, Effect.STATUS, status=429, retry_after="8")],
    "503 with Retry-After at the listing": [
        Fault(LIST, Effect.STATUS, status=503, retry_after="20")
    ],
    "500 twice, then good": [Fault(ZIP, Effect.STATUS, status=500, times=2)],
    "cut with Range": [Fault(ZIP, Effect.CUT, after=n) for n in (0, 1, 700, 2000, 4000)],
    "Content-Length too long": [Fault(ZIP, Effect.LENGTH, off=100)],
    "Content-Length too short": [Fault(ZIP, Effect.LENGTH, off=-100)],
    "30 s of silence": [Fault(ZIP, Effect.SILENCE, seconds=30, after=1000)],
    "a byte a second": [Fault(ZIP, Effect.TRICKLE, seconds=1, after=1000)],
    "a redirect to another host": [
        Fault(LIST, Effect.REDIRECT, location="http://localhost:9/kbo-open-data/")
    ],
}
"""What heals by itself: the extract is published though this happened."""


@pytest.mark.rare
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_delays_and_no_more(
    name: str, server: Server, pipeline: Pipeline, portal: Portal
) -> None:
    wait_for(pipeline, "0141-update")
    newest = ExtractKey.parse(published(pipeline)[-1]).number
    for fault in FAULTS[name]:
        portal.stand_in.add_fault(fault)
    portal.offer(f"0{newest + 1}-update")
    began = time.monotonic()
    wait_for(pipeline, f"0{newest + 1}-update")
    print(f"{name}: published after {time.monotonic() - began:.0f} s")
    check_register(pipeline, newest + 1)
    assert all(portal.stand_in.next_fault(fault.kind) is None for fault in FAULTS[name])


@dataclass
class Webhook:
    """Takes alerts; refuses the first of them."""

    refusals: int = 1
    asked: int = 0
    alerts: list[dict[str, Any]] = field(default_factory=list)
    server: ThreadingHTTPServer = field(init=False)

    def __enter__(self) -> "Webhook":
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.asked += 1
                is_refused = webhook.asked <= webhook.refusals
                if not is_refused:
                    webhook.alerts.append(json.loads(content))
                self.send_response(503 if is_refused else 204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/secret-canary-path"


@pytest.mark.rare
def test_a_refused_password_is_tried_once_and_told_once_until_env_has_changed(
    tmp_path: Path, portal: Portal
) -> None:
    with FaultyPortal(portal.made) as stand_in, Webhook() as webhook:
        settings = account(stand_in) | {"KBO_ALERT_WEBHOOK": webhook.url}
        name = settings.pop("KBO_USERNAME")
        password = settings.pop("KBO_PASSWORD")
        pipeline = Pipeline(tmp_path / "data", settings)
        env_file = tmp_path / ".env"
        env_file.write_text(f"KBO_USERNAME={name}\nKBO_PASSWORD=wrong\n")
        env_file.chmod(0o600)
        with running_server(pipeline, cwd=tmp_path) as server:
            wait_until(lambda: webhook.alerts)
            asked = len(server.ticks("kbo_extract_sensor"))
            told = len(server.ticks("alert_sensor"))
            wait_until(lambda: len(server.ticks("alert_sensor")) > told)
            assert len(server.ticks("kbo_extract_sensor")) > asked
            assert server.runs("stage_extract") == []
            assert stand_in.count(Kind.LOGIN) == 1
            said = pipeline.kbo("status", check=False, cwd=tmp_path).stdout
            assert "the portal refuses the account" in said
            env_file.write_text(f"KBO_USERNAME={name}\nKBO_PASSWORD={password}\n")
            wait_until(lambda: published(pipeline))
            assert stand_in.count(Kind.LOGIN) >= 2
    (alert,) = webhook.alerts
    assert (alert["kind"], alert["stage"], alert["extract"]) == ("refused", "portal", None)
    assert "KBO_PASSWORD" in alert["command"] and "refuses the account" in alert["error"]
    assert webhook.asked == 2  # refused once, sent again, and no more
    logs = "".join(log.read_text() for log in (pipeline.directory / "work" / "logs").iterdir())
    assert "ALERT refused" in logs
    assert "secret-canary-path" not in logs


def wait_until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.5)
