"""`kbo serve`: what it answers, to whom, and what it refuses. Real requests to a real server."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from dataclasses import asdict, replace
from hashlib import sha256
from http.client import HTTPResponse
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import duckdb
import pytest
import requests
import schemathesis
from fastapi import HTTPException, Request
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.read.index import build_index
from kbo_pipeline.read.question import Question
from kbo_pipeline.read.register import PublishedRegister
from kbo_pipeline.read.types import Entry
from kbo_pipeline.read.web import asking
from kbo_pipeline.read.web.asking import Asker
from kbo_pipeline.read.web.frame import LONGEST_ADDRESS
from kbo_pipeline.read.web.served import Served
from kbo_pipeline_tests.support.bakery import (
    BAKER,
    FOREIGN,
    LATE,
    PERSON,
    SHOP,
    STALL,
    leave_out,
    make_bakery,
)
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.web import Web, problem_of, samples, serving

ROUTES = 9
EVIL = "http://evil.example"
PAGE = "https://crm.example"
ENDLESS = "SELECT count(*) FROM range(1_000_000_000) a, range(1_000_000_000) b"


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory) -> Core:
    bakery = make_bakery(tmp_path_factory.mktemp("bakery"))
    build_index(bakery.all_settings())
    return bakery


@pytest.fixture(scope="module")
def register(bakery: Core) -> Iterator[PublishedRegister]:
    with bakery.read_register() as register:
        yield register


@pytest.fixture(scope="module")
def web(bakery: Core) -> Iterator[Web]:
    with serving(bakery) as web:
        yield web


def as_json(value: Any) -> Any:
    """A value as the commands print it."""
    return json.loads(json.dumps(value, default=str))


@pytest.mark.parametrize(
    ("number", "at", "language"),
    [
        (BAKER, None, "nl"),
        (BAKER, 140, "fr"),
        (SHOP, "0141-update", "de"),
        (FOREIGN, 141, "nl"),
        (PERSON, None, "nl"),
    ],
)
def test_an_enterprise_is_what_show_prints(
    web: Web, register: PublishedRegister, number: str, at: Any, language: Any
) -> None:
    known = "" if at is None else f"&at={at}"
    found = web.data(f"v1/enterprises/{number}?lang={language}{known}")
    assert found == as_json(register.enterprise(number, at, language).to_json())
    assert web.data(f"v1/enterprises/BE{number.replace('.', '')}?lang={language}{known}") == found


@pytest.mark.parametrize(
    "criteria",
    [
        {"text": "celeste"},
        {"text": "gouden kors"},
        {"text": "bakkery hemels"},
        {"nace": "47", "zipcode": "1005"},
    ],
)
def test_hits_are_what_find_gives(
    web: Web, register: PublishedRegister, criteria: dict[str, Any]
) -> None:
    query = "&".join(f"{'q' if k == 'text' else k}={v}" for k, v in criteria.items())
    expected = as_json([asdict(match) for match in register.find(**criteria)])
    assert expected
    assert web.data(f"v1/find?{query}") == expected
    assert web.data(f"v1/find?{query}&limit=1") == expected[:1]


ENTRIES = [
    Entry("Bakery Hemels nv", "9007"),
    Entry("de gouden korst", number="BE 0200.065.765"),
    Entry("Somebody else", number=PERSON),
    Entry("nobody at all"),
    Entry("<script>", "'; DROP TABLE enterprise; --", "\0"),
]


def test_a_list_is_matched_as_by_the_register(web: Web, register: PublishedRegister) -> None:
    body = [asdict(entry) for entry in ENTRIES]
    answer = web.post("v1/match", body)
    assert answer.status_code == 200
    expected = [asdict(matched) for matched in register.match(ENTRIES)]
    assert answer.json()["data"] == as_json(expected)
    assert [matched["certain"] for matched in expected][1:4] == [True, False, False]
    assert answer.json()["source"]["extract"] == "0142-update"
    assert "etag" not in answer.headers
    assert web.post("v1/match", [{"name": "x"}]).json()["data"] != answer.json()["data"]
    assert web.post("v1/match", []).json()["data"] == []


def test_what_is_no_list_is_refused(web: Web) -> None:
    bodies: list[Any] = [{}, [{}], ["x"], [{"name": 1}], [{"name": "x"}] * 1001, None]
    for body in bodies:
        status, line = problem_of(web.post("v1/match", body))
        assert status == 400, body
        assert line
    for text in (b"[" * 100_000, b"{", b"\xff", b'[{"name": "' + b"\\ud800" * 9 + b'"}]'):
        headers = {"Content-Type": "application/json"}
        answer = web.session.post(
            f"{web.address}/kbo/v1/match", data=text, headers=headers, timeout=60
        )
        assert answer.status_code in (200, 400), text[:40]
    assert problem_of(web.post("v1/match", [{"name": "x" * 2_000_000}]))[0] == 413


def test_an_index_that_comes_later_is_another_answer(tmp_path: Path, bakery: Core) -> None:
    core = Core(tmp_path / "core")
    core.directory.mkdir()
    core.database.write_bytes(bakery.database.read_bytes())
    with serving(core) as web:
        before = web.get("v1/find?q=bakkery+hemels")
        assert before.status_code == 200 and before.json()["data"] == []
        status, line = problem_of(web.post("v1/match", [{"name": "bakkery hemels"}]))
        assert (status, line.split(": ", 1)[1]) == (
            503,
            "there is no search index; kbo index makes it",
        )
        build_index(core.all_settings())
        known = {"If-None-Match": before.headers["etag"]}
        after = web.get("v1/find?q=bakkery+hemels", headers=known)
        assert after.status_code == 200
        assert [hit["enterprise_number"] for hit in after.json()["data"]] == [BAKER]
        assert web.get("search?q=bakkery+hemels", headers={"Accept-Language": "en"}).text.count(
            "Nothing is written so; this is near:"
        )


def test_changes_are_read_page_by_page(web: Web, register: PublishedRegister) -> None:
    expected = as_json([asdict(event) for event in register.changes_since(140)])
    found: list[Any] = []
    after = "0140-full"
    while (part := web.data(f"v1/changes?after={quote(after)}&limit=2"))["has_more"]:
        assert len(part["events"]) == 2
        found += part["events"]
        after = part["next"]
    assert found + part["events"] == expected
    assert len(expected) > 4
    assert part["next"] == register.cursor()
    assert web.data(f"v1/changes?after={part['next']}") == {
        "events": [],
        "next": part["next"],
        "has_more": False,
    }
    renamed = web.data(f"v1/changes?after=140&kind=renamed&kind=new&number={BAKER}")["events"]
    assert renamed == [
        event
        for event in expected
        if event["kind"] in ("renamed", "new") and event["enterprise_number"] == BAKER
    ]
    assert renamed


def test_each_answer_says_where_it_is_from(web: Web) -> None:
    for path in (f"enterprises/{BAKER}", "find?q=celeste", "changes?after=140", "source"):
        assert web.get(f"v1/{path}").json()["source"] == {
            "extract": "0142-update",
            "snapshot_date": "2025-05-23",
            "line": "Source: KBO Open Data, FPS Economy; data of 2025-05-23",
            "proven_at": None,
        }
    found = web.data("v1/source")
    assert [e["key"] for e in found["extracts"]] == ["0142-update", "0141-update", "0140-full"]
    assert (found["privacy"], found["proven_extract_number"]) == ("full", None)


def test_who_has_an_answer_does_not_get_it_again(web: Web) -> None:
    path = f"v1/enterprises/{BAKER}"
    first = web.get(path)
    tag = first.headers["etag"]
    assert tag.startswith('"0142-update-')
    assert web.get("v1/source").headers["etag"] == tag
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        answer = web.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    for other in ('"0142-update-000000000000"', "nonsense", ""):
        answer = web.get(path, headers={"If-None-Match": other})
        assert (answer.status_code, answer.content) == (200, first.content)


NUMBER_EXPECTED = (
    "is no number of an enterprise, establishment unit or branch; expected one such as"
    " 0200.065.765, BE0200065765 or 2.000.000.339"
)


@pytest.mark.parametrize(
    ("path", "status", "line"),
    [
        ("v1/enterprises/none", 400, f"'none' {NUMBER_EXPECTED}"),
        (
            "v1/enterprises/0403.449.823",
            404,
            "0403.449.823: not in the register, in none of the extracts 0140-full to 0142-update",
        ),
        (
            f"v1/enterprises/{BAKER}?at=139",
            404,
            "139: not among the published extracts; 0140-full to 0142-update are",
        ),
        (f"v1/enterprises/{BAKER}?at=2025-02-30", 400, "2025-02-30: there is no such day"),
        (f"v1/enterprises/{BAKER}?lang=en", 400, "lang: Input should be 'nl', 'fr' or 'de'"),
        ("v1/find", 400, "nothing to look for: name a text, a zipcode or a NACE code"),
        ("v1/find?zipcode=9999", 404, "'9999': no address has this zipcode in the register"),
        ("v1/find?q=x&limit=0", 400, "limit: Input should be greater than or equal to 1"),
        ("v1/find?q=x&limit=101", 400, "limit: Input should be less than or equal to 100"),
        (
            "v1/find?q=x&zip=1005",
            400,
            "'zip': no parameter here; there are limit, nace, nace_version, q, status, zipcode",
        ),
        ("v1/source?at=1", 400, "'at': no parameter here; there is none"),
        ("v1/changes", 400, "after: Field required"),
        (
            "v1/changes?after=yesterday",
            400,
            "'yesterday' is not an extract; expected a key such as 0141-update, a number such as"
            " 141, or a date",
        ),
        (f"v1/changes?after=140&number=x{SHOP}", 400, f"'x{SHOP}' {NUMBER_EXPECTED}"),
        ("v1/nothing", 404, "Not Found"),
        ("v1/source/", 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_one_line(web: Web, path: str, status: int, line: str) -> None:
    assert web.problem(path) == (status, line)


def test_an_unknown_kind_is_named_with_those_that_there_are(web: Web) -> None:
    status, line = web.problem("v1/changes?after=140&kind=newer")
    assert status == 400
    assert line.startswith("'newer': no kind of changes; there are new, stopped, ")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_it_is_for_reading(web: Web, method: str) -> None:
    for path in ("v1/source", f"v1/enterprises/{BAKER}", "metrics"):
        answer = web.session.request(method, f"{web.address}/kbo/{path}", timeout=60)
        assert problem_of(answer) == (405, "Method Not Allowed")
        assert answer.headers["allow"] == "GET"


HOSTILE = (
    "'; DROP TABLE enterprise; --",
    '" OR 1=1 --',
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "../../../../etc/passwd",
    "%00",
    "\u202e\x1b[31m",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "$text",
    "%%%",
    "0" * 99,
)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_asked_is_never_taken_for_anything_else(web: Web, text: str) -> None:
    before = web.get("v1/source").content
    value = quote(text, safe="")
    paths = [f"v1/enterprises/{value}", f"v1/enterprises/{BAKER}?at={value}"]
    paths += [f"v1/find?q={value}", f"v1/find?q=a&nace={value[:9]}", f"v1/find?zipcode={value}"]
    paths += [f"v1/changes?after={value}", f"v1/changes?after=140&kind={value}"]
    for path in paths:
        answer = web.get(path)
        assert answer.status_code in (200, 400, 404), (path, answer.text)
        assert answer.headers["content-type"] in ("application/json", "application/problem+json")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert web.get("v1/source").content == before


def ask(web: Web, first_line: str, *headers: str, body: bytes = b"") -> int:
    """Sends exactly this request; the status of the answer, 0 for a connection that is closed."""
    address = urlsplit(web.address)
    assert address.port is not None
    lines = [first_line, *headers, f"Content-Length: {len(body)}", "", ""]
    request = "\r\n".join(lines).replace("PORT", str(address.port)).encode("latin-1")
    with socket.create_connection(("127.0.0.1", address.port), timeout=30) as connection:
        answer = HTTPResponse(connection, method=first_line.split()[0])
        with suppress(OSError):  # it has answered, and closed
            connection.sendall(request + body)
        try:
            answer.begin()
        except OSError:
            return 0
        return answer.status


OURS = "Host: 127.0.0.1:PORT"


def test_what_is_too_long_is_not_read(web: Web) -> None:
    status, line = web.problem(f"v1/find?q={'a' * LONGEST_ADDRESS}")
    assert status == 414
    assert line.startswith("an address of 8,0")
    for asked in (f"find?q={'a' * 1_000_000} HTTP/1.1", f"source HTTP/1.1\r\nX: {'a' * 1_000_000}"):
        assert ask(web, f"GET /kbo/v1/{asked}", OURS) in (0, 400)
    deep = b"[" * 200_000
    for body in (deep, b"a" * 3_000_000):
        assert ask(web, "POST /kbo/v1/source HTTP/1.1", OURS, body=body) in (0, 405, 413), len(body)
    assert web.get("v1/source").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/kbo/v1/../../etc/passwd", 404),
        ("/kbo/v1/%2e%2e/%2e%2e/etc/passwd", 404),
        ("//etc/passwd", 404),
        ("/kbo//v1/source", 404),
        ("/kbo/v1/pages.css/../docs.html", 404),
        ("/kbo/v1/enterprises/%2e%2e", 400),
        ("/kbo/v1/enterprises/%ff%fe", 400),
        ("*", 404),
    ],
)
def test_no_path_leads_elsewhere(web: Web, path: str, status: int) -> None:
    assert ask(web, f"GET {path} HTTP/1.1", OURS) == status


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, ("Host: localhost:PORT",)),
        (200, ("Host: [::1]:PORT",)),
        (200, (OURS, "Origin: http://127.0.0.1:PORT")),
        (200, (OURS, "Sec-Fetch-Site: same-origin")),
        (421, ("Host: evil.example:PORT",)),
        (421, ("Host: 127.0.0.1",)),
        (400, (OURS, "Host: evil.example")),
        (421, ("Host: evil.example", "X-Forwarded-Host: 127.0.0.1:PORT")),
        (403, (OURS, f"Origin: {EVIL}")),
        (403, (OURS, f"Origin: {PAGE}")),
        (403, (OURS, "Origin: null")),
        (403, (OURS, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors")),
    ],
)
def test_other_names_and_other_pages_are_refused(
    web: Web, status: int, headers: tuple[str, ...]
) -> None:
    assert ask(web, "GET /kbo/v1/source HTTP/1.1", *headers) == status


def test_pages_names_and_a_prefix_that_are_named(bakery: Core) -> None:
    names = {"KBO_API_ORIGINS": PAGE, "KBO_UI_NAMES": "kbo.example"}
    with serving(bakery, "--root-path", "/register", **names) as web:
        assert web.get("v1/openapi.json").json()["servers"] == [{"url": "/register"}]
        assert 'href="/register/kbo/v1/pages.css"' in web.get("v1/docs").text
        assert 'href="/register/kbo/search?lang=fr"' in web.get("search").text
        answer = web.get("v1/source", headers={"Origin": PAGE, "Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        preflight = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
        answer = requests.options(f"{web.address}/kbo/v1/source", headers=preflight, timeout=60)
        assert answer.status_code == 200
        assert web.problem("v1/source", headers={"Origin": EVIL})[0] == 403
        assert web.get("v1/source", headers={"Host": "kbo.example"}).status_code == 200


def test_a_key_is_asked_for_where_there_are_some(bakery: Core) -> None:
    hashes = [sha256(key.encode()).hexdigest() for key in ("first", "second")]
    with serving(bakery, KBO_API_KEYS=",".join(hashes)) as web:
        for path in ("v1/source", "v1/openapi.json", "v1/docs", "metrics", "v1/nothing"):
            answer = web.get(path)
            assert problem_of(answer)[0] == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for said in (
            "Bearer third",
            f"Bearer {hashes[0]}",
            "Bearer",
            "first",
            "Basic x",
            "Basic ==",
        ):
            assert web.problem("v1/source", headers={"Authorization": said})[0] == 401
        assert web.get("v1/source", headers={"Authorization": "Bearer first"}).status_code == 200
        answer = requests.get(f"{web.address}/kbo/v1/source", auth=("any", "second"), timeout=60)
        assert answer.status_code == 200


def test_several_processes_answer_alike(bakery: Core) -> None:
    with serving(bakery, "--workers", "2") as web:
        answers = [requests.get(f"{web.address}/kbo/v1/source", timeout=60) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({(answer.headers["etag"], answer.content) for answer in answers}) == 1


def test_who_may_not_be_shown_is_not(tmp_path: Path, bakery: Core) -> None:
    with serving(bakery, KBO_PRIVACY="legal-persons") as web:
        status, line = web.problem("v1/source")
        assert status == 503
        assert "its views show natural persons too" in line
    hiding = Core(tmp_path / "core")
    hiding.directory.mkdir()
    hiding.database.write_bytes(bakery.database.read_bytes())
    leave_out(hiding.database, [LATE])
    with serving(hiding, KBO_PRIVACY="legal-persons") as web:
        assert web.data("v1/source")["privacy"] == "legal-persons"
        for number in (PERSON, STALL, LATE):
            assert web.problem(f"v1/enterprises/{number}")[0] == 404
        assert web.data("v1/find?q=anna") == []
        assert web.data("v1/find?q=celeste") != []
        everything = web.get("v1/changes?after=140").text + web.get("v1/find?q=celeste").text
        assert BAKER in everything
        assert PERSON not in everything and "Anna" not in everything


def test_nothing_published_is_said_until_there_is(tmp_path: Path, bakery: Core) -> None:
    core = Core(tmp_path / "core")
    with serving(core) as web:
        status, line = web.problem("v1/source")
        assert (status, line.split(": ", 1)[1]) == (
            503,
            "no published register there; kbo start or kbo import creates it",
        )
        assert "kbo_register_readable 0.0" in web.get("metrics").text
        core.database.write_bytes(bakery.database.read_bytes())
        time.sleep(0.6)
        assert web.data("v1/source")["extracts"] != []


def test_metrics_are_what_prometheus_reads(web: Web) -> None:
    web.get("v1/source")
    web.get("v1/enterprises/none")
    web.get("elsewhere")
    answer = web.get("metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    found = samples(answer.text)
    assert found["kbo_extract_number",] == 142
    assert found["kbo_register_readable",] == 1
    assert found["kbo_extract_age_seconds",] > 0
    names = {name for name, *_ in found}
    assert "kbo_proof_timestamp_seconds" not in names
    assert found["kbo_http_requests_total", "GET", "/kbo/v1/source", "200"] >= 1
    assert found["kbo_http_requests_total", "GET", "/kbo/v1/enterprises/{number}", "400"] >= 1
    assert found["kbo_http_requests_total", "GET", "other", "404"] >= 1
    count = found["kbo_http_request_seconds_count", "/kbo/v1/source"]
    assert count >= 1
    assert 0 < found["kbo_http_request_seconds_sum", "/kbo/v1/source"] < 60 * count


def test_the_application_knows_no_dagster() -> None:
    code = (
        "import sys, kbo_pipeline.read.web.application, kbo_pipeline.commands.serve, uvicorn\n"
        "print([name for name in sys.modules if name.split('.')[0].startswith('dagster')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_address_that_is_taken_is_one_line(bakery: Core) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "kbo_pipeline.cli", "serve", "--port", str(port)],
            env=bakery.settings,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    reason = "Address already in use; name another by --host and --port"
    assert done.stderr == f"kbo: 127.0.0.1:{port}: {reason}\n"


def test_a_question_is_stopped_by_another_thread(register: PublishedRegister) -> None:
    question, ended = Question(), threading.Event()

    def stop() -> None:
        while not ended.wait(0.05):
            question.stop()

    thread = threading.Thread(target=stop)
    with pytest.raises(duckdb.InterruptException), question.asked():
        thread.start()
        register.sql(ENDLESS).fetchall()
    with pytest.raises(duckdb.InterruptException), question.asked():
        register.find("celeste")  # nothing more is asked
    ended.set()
    thread.join()
    assert register.find("celeste")  # others are


def request(*, is_there: bool) -> Request:
    """A request of somebody who waits, or has gone."""

    async def receive() -> MutableMapping[str, Any]:
        if is_there:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    return Request(scope, receive)


@pytest.mark.parametrize(("seconds", "is_there"), [(0.3, True), (60.0, False)])
def test_what_takes_too_long_or_nobody_waits_for_is_stopped(
    bakery: Core, monkeypatch: pytest.MonkeyPatch, seconds: float, is_there: bool
) -> None:
    monkeypatch.setattr(asking, "ANSWER_SECONDS", seconds)

    async def ask() -> float:
        served = Served(bakery.all_settings())
        asker = Asker(served)
        began = time.monotonic()
        with pytest.raises(HTTPException, match="ask for less"):
            await asker.answer(
                request(is_there=is_there), lambda register: register.sql(ENDLESS).fetchall()
            )
        after = time.monotonic() - began
        answer = await asker.answer(request(is_there=True), lambda register: register.source)
        assert json.loads(bytes(answer.body))["data"].startswith("Source: ")
        served.close()
        return after

    assert asyncio.run(ask()) < 5


def test_a_question_that_is_stopped_while_it_opens_the_register_harms_no_other(
    bakery: Core,
) -> None:
    served, stopped = Served(bakery.all_settings()), Question()
    stopped.stop()
    with stopped.asked(), pytest.raises(duckdb.InterruptException), served.opened():
        pass
    with served.opened() as opened:
        assert opened.register.source.startswith("Source: ")
    served.close()


def test_too_many_questions_are_asked_to_come_again(
    bakery: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "WAITING", 2)

    async def ask() -> list[str]:
        asker = Asker(Served(bakery.all_settings()))
        go_on = threading.Event()
        questions = [
            asyncio.create_task(asker.work(request(is_there=True), lambda: go_on.wait(30)))
            for _ in range(asking.THREADS + 2)
        ]
        await asyncio.sleep(0.1)
        with pytest.raises(HTTPException) as refused:
            await asker.work(request(is_there=True), lambda: None)
        go_on.set()
        assert await asyncio.gather(*questions) == [True] * len(questions)
        return [refused.value.detail, str(await asker.work(request(is_there=True), lambda: 1))]

    assert asyncio.run(ask()) == ["too many questions at a time; ask again", "1"]


def test_a_register_is_closed_after_its_last_answer(tmp_path: Path, bakery: Core) -> None:
    core = Core(tmp_path)
    core.database.write_bytes(bakery.database.read_bytes())
    served = Served(replace(bakery.all_settings(), database=core.readers))
    with served.opened() as before:
        core.database.unlink()
        time.sleep(0.6)
        with pytest.raises(NotReadyError, match="no published register"), served.opened():
            pass
        assert before.register.find("celeste")
    with pytest.raises(duckdb.ConnectionException, match="closed"):
        before.register.find("celeste")


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def calls(web: Web, cases: SearchStrategy[Any], number: int) -> int:
    """Makes so many calls, and holds the answers against the description; how many it made."""
    made = 0

    @settings(
        max_examples=number,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(case=cases)
    def call(case: Any) -> None:
        nonlocal made
        case.call_and_validate(checks=CHECKS, session=web.session)
        made += 1

    call()
    return made


@pytest.mark.parametrize(
    "number",
    [
        50,
        pytest.param(1700, marks=(pytest.mark.long, pytest.mark.rare, pytest.mark.timeout(3600))),
    ],
)
def test_what_is_answered_is_what_is_described(web: Web, number: int) -> None:
    """So many calls of each route that its description allows, and as many that it does not."""
    schema = schemathesis.openapi.from_url(f"{web.address}/kbo/v1/openapi.json")
    description = web.get("v1/openapi.json").json()
    counts = dict.fromkeys(description["paths"], 0)
    for path, methods in description["paths"].items():
        for method, mode in product(methods, GenerationMode):
            operation = schema[path][method.upper()]
            if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body):
                continue

            counts[path] += calls(web, operation.as_strategy(generation_mode=mode), number)
    print(counts)
    assert len(counts) == ROUTES
    assert sum(counts.values()) > 6 * number


def test_the_page_for_people_says_what_the_description_does(web: Web) -> None:
    page = web.get("v1/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "script" not in page.text
    description = web.get("v1/openapi.json").json()
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert f"<code>{method.upper()} {path}</code>" in page.text
            for parameter in operation.get("parameters", []):
                assert f"<code>{parameter['name']}</code>" in page.text
    assert web.get("v1/pages.css").headers["content-type"].startswith("text/css")
