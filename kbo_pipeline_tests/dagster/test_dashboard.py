"""The page `/kbo`: what it shows, what its buttons do, who may press them, what it costs."""

import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser

import dagster as dg
import duckdb
import pytest
import requests
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage
from sqlalchemy import event

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.operate.markers import Poll, is_paused, store_alerts, write_poll
from kbo_pipeline.operate.processes.dashboard.page import Reader, render
from kbo_pipeline.operate.runs.live import forget_live, reporting
from kbo_pipeline.operate.runs.progress import (
    ASSETS_OF_JOBS,
    CANCELLED_TAG,
    EXTRACT_TAG,
    RANGE_END_TAG,
    RANGE_START_TAG,
    ROLLBACK_JOB,
    SEARCH_JOB,
    VERIFY_JOB,
)
from kbo_pipeline_tests.support.pipeline import Pipeline, forget_everything
from kbo_pipeline_tests.support.processes import web_server
from kbo_pipeline_tests.support.server import Server
from kbo_pipeline_tests.support.year import Year

FULL, UPDATE, NEXT = map(ExtractKey.parse, ("0140-full", "0141-update", "0142-update"))
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m"
EVIL = "http://evil.example"
BATCHES = 4


class Tags(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("dashboard"))


@pytest.fixture(scope="module")
def stored(pipeline: Pipeline) -> Iterator[dg.DagsterInstance]:
    with pipeline.instance() as instance:
        yield instance


@pytest.fixture
def instance(stored: dg.DagsterInstance) -> dg.DagsterInstance:
    forget_everything(stored)
    return stored


@pytest.fixture(scope="module")
def server(pipeline: Pipeline, stored: dg.DagsterInstance) -> Iterator[Server]:
    with web_server(pipeline) as (server, _):
        yield server


@pytest.fixture
def settings(pipeline: Pipeline) -> Settings:
    return load_settings(pipeline.environment)


def run_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def page(server: Server) -> Tags:
    answer = requests.get(f"{server.address}/kbo", timeout=60)
    assert answer.status_code == 200, answer.text
    return Tags(answer.text)


def press(server: Server, path: str, **headers: str) -> requests.Response:
    return requests.post(f"{server.address}/kbo/{path}", headers=headers, timeout=120)


def message(answer: requests.Response) -> str:
    """What the page says of a button."""
    found = re.search(r'<p id="message"[^>]*>(.*?)</p>', answer.text, re.DOTALL)
    assert found is not None, answer.text
    return Tags(found[1]).text[2:]


def grown(instance: dg.DagsterInstance, updates: int = 0) -> Year:
    """A published Full, and so many Updates after it."""
    year = Year(instance, BATCHES)
    for number in range(140, 141 + updates):
        year.import_extract(ExtractKey(number, "full" if number == 140 else "update"))
    year.write()
    return year


def test_a_new_installation_says_what_comes_next(
    server: Server, instance: dg.DagsterInstance, settings: Settings
) -> None:
    store_alerts(instance, [])
    shown = page(server)
    assert "Nothing has been imported yet" in shown.text
    assert "no account for the portal is set (KBO_USERNAME, KBO_PASSWORD in .env)" in shown.text
    assert f"ZIPs in {settings.inbox_dir} are imported at any time" in shown.text
    assert [form["action"] for form in shown.all("form")] == ["/kbo/pause"]


def test_nothing_on_it_is_inline_and_all_of_it_is_ours(server: Server) -> None:
    answer = requests.get(f"{server.address}/kbo", timeout=60)
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    shown = Tags(answer.text)
    assert [script["src"] for script in shown.all("script")] == ["/kbo/page.js"]
    assert not shown.all("style")
    for name, attributes in shown.found:
        assert not [key for key in attributes if key == "style" or key.startswith("on")], name
    for path, kind in (("page.js", "javascript"), ("page.css", "css")):
        file = requests.get(f"{server.address}/kbo/{path}", timeout=60)
        assert (file.status_code, kind in file.headers["content-type"]) == (200, True)
        assert "http" not in file.text.replace("http-equiv", "")
        assert len(file.content) < 8000


def test_an_extract_at_work_is_shown_as_its_process_says(
    server: Server, instance: dg.DagsterInstance, settings: Settings
) -> None:
    year = grown(instance)
    year.import_extract(UPDATE, ["stage_extract"])
    year.import_extract(NEXT, ["stage_extract"])
    year.write()
    run_id = year.run(
        "apply_batches", [], [], {EXTRACT_TAG: str(UPDATE)}, dg.DagsterRunStatus.STARTED
    )
    with reporting(settings, UPDATE, run_of(instance, run_id), "applying") as report:
        report(0.5, f"batch 3 of 4: {HOSTILE}")
        report.failed(f"{UPDATE}-0002", HOSTILE)
        report.failed(
            f"{UPDATE}-0003", f"{UPDATE}: batch 3: address: 2 rows were staged, 1 is there"
        )
    shown = page(server)
    assert "batch 3 of 4: <script>" in shown.text
    (overall, *tables) = shown.all("progress")
    assert 40 < float(overall["value"] or 0) < 99
    assert [bar["aria-label"] for bar in tables][:2] == ["enterprise", "establishment"]
    assert [(bar["value"], bar["max"]) for bar in tables] == [("0", str(BATCHES))] * 7
    assert f"{UPDATE}-0002" in shown.text and "Failed batches" in shown.text
    links = {str(link["href"]) for link in shown.all("a")}
    for table, batch in (("enterprise", 2), ("address", 3)):
        assert f"/assets/{table}?view=partitions&partition={UPDATE}-{batch:04d}" in links
    assert f"{NEXT}" in shown.text and "Queue" in shown.text
    assert f"staged; waits for {UPDATE}" in shown.text
    assert [script.get("src") for script in shown.all("script")] == ["/kbo/page.js"]
    assert "\x1b" not in shown.text
    actions = [form["action"] for form in shown.all("form")]
    assert actions == [f"/kbo/cancel/{UPDATE}", "/kbo/pause"]
    status = requests.get(f"{server.address}/kbo/status", timeout=60).json()
    assert (status["stage"], status["extract_number"]) == ("applying", 141)
    assert 0 < status["seconds_left"] < 60
    forget_live(settings, UPDATE)


def test_what_a_run_said_that_has_ended_is_not_shown(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    year = grown(instance)
    instance.add_dynamic_partitions("kbo_extracts", [str(UPDATE)])
    tags = {EXTRACT_TAG: str(UPDATE), "kbo/started_by": "kbo"}
    run_id = year.run("stage_extract", [], [], tags, dg.DagsterRunStatus.CANCELED)
    with reporting(settings, UPDATE, run_of(instance, run_id), "staging") as report:
        report(0.5, "unpacking")
    shown = Reader(instance, settings).read()
    assert shown.status is not None
    assert shown.status.operation != "unpacking"
    forget_live(settings, UPDATE)


def test_alerts_of_others_are_text(server: Server, instance: dg.DagsterInstance) -> None:
    alert = {"kind": "failed", "extract": "0141-update", "error": HOSTILE, "command": HOSTILE}
    store_alerts(instance, [alert])
    shown = page(server)
    assert shown.text.count("<script>alert(1)</script>") == 2
    assert [script.get("src") for script in shown.all("script")] == ["/kbo/page.js"]
    store_alerts(instance, [])
    assert "Alerts" not in page(server).text


def test_a_failure_says_once_why_what_is_next_and_what_readers_have(
    server: Server, instance: dg.DagsterInstance
) -> None:
    year = grown(instance)
    instance.add_dynamic_partitions("kbo_extracts", [str(UPDATE)])
    tags = {EXTRACT_TAG: str(UPDATE)}
    run_id = year.run("stage_extract", [], [], tags, dg.DagsterRunStatus.FAILURE)
    error = f"run {run_id} ended without a failed step; see it in the UI"
    step = f"fix the cause, then kbo retry {UPDATE}"
    alerts = [
        {"kind": "failed", "extract": str(key), "error": why, "command": step}
        for key, why in ((UPDATE, error), (UPDATE, "an earlier one"), (FULL, "published since"))
    ]
    store_alerts(instance, alerts)
    shown = page(server)
    assert shown.text.count(error) == 1
    assert shown.text.count(step) == 1 and "an earlier one" not in shown.text
    assert "published since" not in shown.text
    assert "Next: Retry goes on where it stopped; if rows of the staging file are" in shown.text
    assert f"Readers have{FULL}" in shown.text
    assert [form["action"] for form in shown.all("form")] == [f"/kbo/retry/{UPDATE}", "/kbo/pause"]
    year.run("stage_extract", [], [], tags, dg.DagsterRunStatus.STARTED)  # it is at work again
    shown = page(server)
    assert "Alerts" not in shown.text and "Next:" not in shown.text
    store_alerts(instance, [])


def test_what_failed_before_it_was_staged_again_has_not_failed(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    year = grown(instance)
    year.import_extract(UPDATE, ["stage_extract"])
    batches = [f"{UPDATE}-0001", f"{UPDATE}-0002"]
    span = {RANGE_START_TAG: batches[0], RANGE_END_TAG: batches[1], EXTRACT_TAG: str(UPDATE)}
    failure = dg.DagsterRunStatus.FAILURE
    year.run("apply_batches", ASSETS_OF_JOBS["apply_batches"], batches, span, failure)
    year.write()
    reader = Reader(instance, settings)
    shown = reader.read()
    assert shown.status is not None and shown.status.status == "failed"
    assert [batch.key for batch in shown.failed] == batches
    year.import_extract(UPDATE, ["stage_extract"])
    year.write()
    shown = reader.read()
    assert shown.status is not None and shown.status.status == "pending"
    assert shown.failed == []


def test_the_last_thirty_are_listed_with_links(
    server: Server, instance: dg.DagsterInstance
) -> None:
    grown(instance, updates=34)
    shown = page(server)
    assert "All published" in shown.text and "0174-update" in shown.text
    assert "Nothing is at work" in shown.text
    links = [str(link["href"]) for link in shown.all("a")]
    listed = {link for link in links if "published_extract?" in link}
    assert len(listed) == 30
    assert "/assets/published_extract?view=partitions&partition=0145-update" in listed


def test_a_published_extract_says_how_often_it_had_failed(
    server: Server, instance: dg.DagsterInstance
) -> None:
    year = grown(instance)
    tags = {EXTRACT_TAG: str(UPDATE)}
    failure = dg.DagsterRunStatus.FAILURE
    year.run("apply_batches", [], [], tags, failure)
    year.run(ROLLBACK_JOB, [], [], tags)
    year.import_extract(UPDATE, ["stage_extract"])
    cancelled = year.run("apply_batches", [], [], tags, failure)
    instance.add_run_tags(cancelled, {CANCELLED_TAG: cancelled})
    failed = [year.run("apply_batches", [], [], tags, failure) for _ in range(2)]
    year.run(VERIFY_JOB, [], [], tags, failure)
    year.import_extract(UPDATE, ["apply_batches", "publish_extract"])
    year.run("publish_extract", [], [], tags, failure)  # its report, made again
    year.write()
    shown = page(server)
    assert shown.text.count("after 2 failed runs") == shown.text.count("failed run") == 1
    assert f"/runs/{failed[-1]}" in {link["href"] for link in shown.all("a")}


def test_only_the_portal_can_say_that_it_is_up_to_date(
    server: Server, instance: dg.DagsterInstance
) -> None:
    grown(instance)
    shown = page(server)
    assert "All published" in shown.text and "Nobody looks for newer extracts" in shown.text
    now = time.time()
    write_poll(instance, Poll(now, now + 60, "0140-full is the newest"))
    assert "Up to date" in page(server).text
    write_poll(instance, Poll(now, now + 60, "no answer", is_failed=True))
    assert "All published" in page(server).text


def test_pause_and_resume_do_and_say_what_the_commands_do(
    server: Server, pipeline: Pipeline, settings: Settings, instance: dg.DagsterInstance
) -> None:
    answer = press(server, "pause")
    assert (answer.status_code, message(answer)) == (200, "paused; kbo resume continues")
    assert is_paused(settings) and "Everything is paused" in answer.text
    assert pipeline.kbo("pause").stdout.strip() == message(press(server, "pause"))
    assert [form["action"] for form in page(server).all("form")] == ["/kbo/resume"]
    assert message(press(server, "resume")) == "resumed"
    assert not is_paused(settings)
    assert pipeline.kbo("resume").stdout.strip() == message(press(server, "resume"))


@pytest.mark.parametrize("action", ["cancel", "retry"])
@pytest.mark.parametrize("extract", ["0999-update", "140-full", "0140-full"])
def test_a_button_refuses_with_the_line_of_its_command(
    server: Server, pipeline: Pipeline, instance: dg.DagsterInstance, action: str, extract: str
) -> None:
    grown(instance)
    answer = press(server, f"{action}/{extract}")
    said = pipeline.kbo(action, extract, check=False)
    line = (said.stderr.removeprefix("kbo: ") or said.stdout).strip()
    if extract == "140-full" and action:  # a command also takes a number that it knows
        line = "'140-full' is not an extract; expected a key such as 0141-update"
    assert message(answer) == line
    assert answer.status_code == (409 if said.returncode else 200)


def test_a_run_that_dagster_does_not_start_is_told(
    server: Server, instance: dg.DagsterInstance
) -> None:
    year = grown(instance)
    instance.add_dynamic_partitions("kbo_extracts", [str(UPDATE)])
    tags = {EXTRACT_TAG: str(UPDATE)}
    for status in (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED):
        year.run(SEARCH_JOB, [], [], tags, status)  # which only reads
    answer = press(server, f"retry/{UPDATE}")  # this server knows no code
    assert answer.status_code == 409
    assert message(answer).startswith(f"{UPDATE}: stage_extract was not started: ")
    assert message(answer).endswith("; see kbo doctor")
    year.run("stage_extract", [], [], tags, dg.DagsterRunStatus.NOT_STARTED)
    answer = press(server, f"retry/{UPDATE}")
    assert answer.status_code == 409
    assert message(answer) == f"{UPDATE}: a run of it waits in the queue; nothing was done"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
        },
    ],
)
@pytest.mark.parametrize("path", ["pause", "resume", "cancel/0140-full", "retry/0140-full"])
def test_no_other_page_presses_a_button(
    server: Server, settings: Settings, path: str, headers: dict[str, str]
) -> None:
    assert press(server, path, **headers).status_code == 403
    assert not is_paused(settings)
    assert requests.get(f"{server.address}/kbo/{path}", timeout=60).status_code == 405


def test_read_only_has_no_buttons_and_takes_none(
    pipeline: Pipeline, instance: dg.DagsterInstance, settings: Settings
) -> None:
    year = grown(instance)
    year.import_extract(UPDATE, ["stage_extract"])
    year.write()
    with web_server(pipeline, "--read-only") as (server, _):
        shown = page(server)
        assert not shown.all("form") and not shown.all("button")
        assert "read only: nothing can be started or stopped here" in shown.text
        for path in ("pause", "resume", f"cancel/{UPDATE}", f"retry/{UPDATE}"):
            answer = press(server, path)
            assert answer.status_code == 403
            assert answer.text == (
                "kbo_pipeline: read only: nothing can be started or stopped here\n"
            )
        assert not is_paused(settings)


def test_a_refresh_asks_as_little_of_many_extracts_as_of_few_and_opens_no_register(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("a register is opened")

    monkeypatch.setattr(duckdb, "connect", connect)
    asked: list[str] = []
    runs, events = instance.run_storage, instance.event_log_storage
    assert isinstance(runs, PostgresRunStorage) and isinstance(events, PostgresEventLogStorage)
    engines = {runs._engine, events._engine}

    def note(*arguments: object) -> None:
        asked.append(str(arguments[2]))

    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        counts = []
        year = grown(instance)
        for first, last in ((141, 143), (144, 180)):
            for number in range(first, last):
                year.import_extract(ExtractKey(number, "update"))
            year.import_extract(ExtractKey(last, "update"), ["stage_extract"])
            year.write()
            reader = Reader(instance, settings)
            assert "staged" not in render(reader.read())  # keeps what is past
            asked.clear()
            render(reader.read())
            counts.append(len(asked))
            year.import_extract(ExtractKey(last, "update"), ["apply_batches", "publish_extract"])
            year.write()
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)
    assert counts[0] == counts[1] <= 25, asked
