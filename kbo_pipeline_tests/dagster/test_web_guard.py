"""Who may ask the web server of `kbo start` for what: real requests to a real server."""

import json
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil
import pytest
import requests
from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError
from graphql import get_introspection_query
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from kbo_pipeline.operate.processes.webserver import MAX_CONNECTIONS
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.processes import noise, wait_until, web_server
from kbo_pipeline_tests.support.queries import CHANGE, COSTLY, EVENTS, LIMITS, POOL
from kbo_pipeline_tests.support.server import LOCATION, Server, running_server

EVIL = "http://evil.example"
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol: graphql-ws",
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded") / "log"


@pytest.fixture(scope="module")
def server(log: Path) -> Iterator[Server]:
    pipeline = Pipeline(log.parent, {"KBO_UI_NAMES": "kbo.example, Intern.example:8080"})
    with pipeline.instance(), web_server(pipeline) as (server, process):
        log.symlink_to(process.log)
        yield server


def ask(server: Server, first_line: str, *headers: str, body: str = "") -> tuple[int, str]:
    """Sends exactly this request; the status and the body of the answer.

    `PORT` in it stands for the server's port.
    """
    port = urlsplit(server.address).port
    assert port is not None
    lines = [first_line, *headers, f"Content-Length: {len(body)}"]
    request = "\r\n".join([*lines, "", body]).replace("PORT", str(port))
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request.encode("latin-1"))
        answer = HTTPResponse(connection, method=first_line.split()[0])
        answer.begin()
        return answer.status, answer.read().decode()


OURS = "Host: 127.0.0.1:PORT"
JSON = "Content-Type: application/json"
PAGE = "GET /runs HTTP/1.1"
QUERY = "POST /graphql HTTP/1.1"
SOCKET = "GET /graphql HTTP/1.1"
READ = json.dumps({"query": LIMITS})
WRITE = json.dumps({"query": CHANGE})


def get(document: str, path: str = "/graphql", more: str = "") -> str:
    return f"GET {path}?query={quote(document, safe='')}{more} HTTP/1.1"


def fetch(site: str, mode: str, *destinations: str) -> tuple[str, ...]:
    """What a browser says of a request."""
    said = [f"Sec-Fetch-Dest: {destination}" for destination in destinations]
    return f"Sec-Fetch-Site: {site}", f"Sec-Fetch-Mode: {mode}", *said


REQUESTS: list[tuple[int, tuple[str, ...], str]] = [
    # Host
    (200, (PAGE, OURS), ""),
    (200, (PAGE, "Host: localhost:PORT"), ""),
    (200, (PAGE, "Host: LocalHost:PORT"), ""),
    (200, (PAGE, "hOST: [::1]:PORT"), ""),
    (421, (PAGE, "Host: evil.example:PORT"), ""),
    (421, (PAGE, "Host: evil.example"), ""),
    (421, (PAGE, "Host: 127.0.0.1"), ""),
    (421, (PAGE, "Host: 127.0.0.1:1"), ""),
    (421, (PAGE, "Host: 127.0.0.1:PORT0"), ""),
    (421, (PAGE, "Host: 127.0.0.1:0PORT"), ""),
    (421, (PAGE, "Host: localhost.:PORT"), ""),
    (421, (PAGE, "Host: localhost.evil.example:PORT"), ""),
    (421, (PAGE, "Host: evil.example@127.0.0.1:PORT"), ""),
    (421, (PAGE, "Host: 127.0.0.1:PORT@evil.example"), ""),
    (421, (PAGE, "Host: 127.1:PORT"), ""),
    (421, (PAGE, "Host: 0.0.0.0:PORT"), ""),
    (421, (PAGE, "Host: 2130706433:PORT"), ""),
    (421, (PAGE, "Host: ::1:PORT"), ""),
    (421, (PAGE, "Host: [::1%lo]:PORT"), ""),
    (421, (PAGE, "Host: [::ffff:127.0.0.1]:PORT"), ""),
    (421, (PAGE, "Host:"), ""),
    (421, (PAGE,), ""),
    (421, ("GET /runs HTTP/1.0",), ""),
    (421, (PAGE, OURS, "Host: evil.example"), ""),
    (421, (PAGE, "Host: evil.example", OURS), ""),
    (421, (PAGE, "Host: evil.example", "X-Forwarded-Host: 127.0.0.1:PORT"), ""),
    (421, ("GET http://127.0.0.1/runs HTTP/1.1", "Host: evil.example"), ""),
    (421, ("GET /server_info HTTP/1.1", "Host: evil.example:PORT"), ""),
    (421, (QUERY, "Host: evil.example:PORT", "Origin: http://evil.example:PORT", JSON), READ),
    # The names of KBO_UI_NAMES, behind which a proxy may speak https
    (200, (PAGE, "Host: kbo.example"), ""),
    (200, (PAGE, "Host: intern.example:8080"), ""),
    (421, (PAGE, "Host: kbo.example:PORT"), ""),
    (421, (PAGE, "Host: intern.example"), ""),
    (200, (QUERY, "Host: kbo.example", "Origin: https://kbo.example", JSON), READ),
    (200, (QUERY, "Host: kbo.example", "Origin: http://kbo.example", JSON), READ),
    (403, (QUERY, "Host: kbo.example", "Origin: https://intern.example:8080", JSON), WRITE),
    (403, (QUERY, OURS, "Origin: https://kbo.example", JSON), WRITE),
    # Origin
    (200, (QUERY, OURS, JSON), READ),
    (200, (QUERY, OURS, "Origin: http://127.0.0.1:PORT", JSON), READ),
    (200, (QUERY, "Host: localhost:PORT", "Origin: HTTP://LOCALHOST:PORT", JSON), READ),
    (403, (QUERY, OURS, f"Origin: {EVIL}", JSON), READ),
    (403, (QUERY, OURS, f"Origin: {EVIL}", JSON), WRITE),
    (403, (QUERY, OURS, "Origin: null", JSON), WRITE),
    (403, (QUERY, OURS, "Origin:", JSON), WRITE),
    (403, (QUERY, OURS, "Origin: http://localhost:PORT", JSON), WRITE),
    (403, (QUERY, "Host: localhost:PORT", "Origin: http://[::1]:PORT", JSON), WRITE),
    (403, (QUERY, OURS, "Origin: https://127.0.0.1:PORT", JSON), WRITE),
    (403, (QUERY, OURS, "Origin: http://127.0.0.1", JSON), WRITE),
    (403, (QUERY, OURS, "Origin: http://127.0.0.1:1", JSON), WRITE),
    (403, (QUERY, OURS, "Origin: http://127.0.0.1:PORT.evil.example", JSON), WRITE),
    (403, (QUERY, OURS, "Origin: http://127.0.0.1:PORT", f"Origin: {EVIL}", JSON), WRITE),
    (403, (QUERY, OURS, f"Origin: {EVIL}", "Content-Type: text/plain"), WRITE),
    (403, (QUERY, OURS, f"Origin: {EVIL}", "Content-Type: text/plain; application/json"), WRITE),
    (403, (QUERY, OURS, f"Origin: {EVIL}", "Content-Type: application/graphql"), CHANGE),
    (403, ("POST /report_asset_materialization/code HTTP/1.1", OURS, "Origin: null"), ""),
    (403, ("OPTIONS /graphql HTTP/1.1", OURS, f"Origin: {EVIL}"), ""),
    # What is in the address
    (200, (get(LIMITS), OURS), ""),
    (200, (get(f"query mutation {LIMITS}"), OURS), ""),
    (
        200,
        (
            get(f'query A {LIMITS} query B {{ b: version }} # "mutation"', more="&operationName=A"),
            OURS,
        ),
        "",
    ),
    (405, (get(CHANGE), OURS), ""),
    (405, (get(f"mutation Named {CHANGE[9:]}"), OURS), ""),
    (405, (get(f"# a comment\n,,\n{CHANGE}"), OURS), ""),
    (405, (get("\ufeff" + CHANGE), OURS), ""),
    (405, (get(CHANGE.replace("setC", "query: setC")), OURS), ""),
    (405, (get(f"query A {LIMITS} {CHANGE}".replace("mutation", "mutation B")), OURS), ""),
    (405, (get(f"query A {LIMITS} mutation B {CHANGE[9:]}", more="&operationName=B"), OURS), ""),
    (405, (get("fragment F on Mutation { setNuxSeen } mutation { ...F }"), OURS), ""),
    (405, (get(EVENTS), OURS), ""),
    (405, (get(CHANGE), OURS, "Accept: text/html"), ""),
    (405, (get(LIMITS, more=f"&query={quote(CHANGE)}"), OURS), ""),
    (405, (get(CHANGE, more=f"&query={quote(LIMITS)}"), OURS), ""),
    (405, (get(CHANGE, path="/%67raphql"), OURS), ""),
    (405, (get(CHANGE, path="/graphql%0A"), OURS), ""),
    (405, (get(CHANGE, path="//graphql"), OURS), ""),
    (405, (f"GET /graphql?%71uery={quote(CHANGE).replace('m', '%6D', 1)} HTTP/1.1", OURS), ""),
    (405, (f"GET /graphql?query={CHANGE.replace(' ', '+')} HTTP/1.1", OURS), ""),
    (405, (get(CHANGE).replace("GET", "HEAD"), OURS), ""),
    (405, (get(CHANGE).replace("GET", "POST"), OURS, "Content-Type: text/plain"), ""),
    (400, (get(CHANGE + " query Q " + "{ a " * 3000), OURS), ""),
    (405, (get("mutation {"), OURS), ""),
    (405, (get(""), OURS), ""),
    (200, (get(CHANGE, path="/runs"), OURS), ""),
    (400, ("GET /graphql HTTP/1.1", OURS), ""),
    (400, (QUERY, OURS, "Content-Type: application/x-www-form-urlencoded"), f"query={CHANGE}"),
    (400, (QUERY, OURS, "Content-Type: text/plain"), WRITE),
    # What browsers say of the page that asks
    (200, (PAGE, OURS, *fetch("same-origin", "cors", "empty")), ""),
    (200, (PAGE, OURS, *fetch("none", "navigate", "document")), ""),
    (200, (PAGE, OURS, *fetch("cross-site", "navigate", "document")), ""),
    (200, (PAGE, OURS, *fetch("same-site", "navigate", "document")), ""),
    (200, (PAGE, OURS, *fetch("cross-site", "navigate", "document"), "Sec-Fetch-User: ?1"), ""),
    (200, (get(LIMITS), OURS, *fetch("none", "navigate", "document")), ""),
    (200, (get(LIMITS), OURS, *fetch("same-origin", "cors", "empty")), ""),
    (200, (QUERY, OURS, JSON, *fetch("same-origin", "cors", "empty")), READ),
    (403, (get(LIMITS), OURS, *fetch("cross-site", "no-cors", "image")), ""),
    (403, (get(LIMITS), OURS, *fetch("cross-site", "no-cors", "script")), ""),
    (403, (get(LIMITS), OURS, *fetch("same-site", "no-cors", "style")), ""),
    (403, (get(LIMITS), OURS, *fetch("cross-site", "navigate", "document")), ""),
    (403, (get(LIMITS), OURS, *fetch("cross-site", "navigate", "iframe")), ""),
    (403, (PAGE, OURS, *fetch("cross-site", "navigate", "iframe")), ""),
    (403, (PAGE, OURS, *fetch("cross-site", "navigate", "object")), ""),
    (403, (PAGE, OURS, *fetch("cross-site", "cors", "document")), ""),
    (403, (PAGE, OURS, *fetch("cross-site", "navigate", "document"), "Sec-Purpose: prefetch"), ""),
    (403, (PAGE, OURS, *fetch("cross-site", "navigate", "document", "iframe")), ""),
    (403, (PAGE.replace("GET", "HEAD"), OURS, *fetch("cross-site", "navigate", "document")), ""),
    (403, (PAGE.replace("GET", "POST"), OURS, *fetch("cross-site", "navigate", "document")), ""),
    (403, (PAGE, OURS, "Sec-Fetch-Site: cross-site"), ""),
    (403, (PAGE, OURS, "sec-fetch-site:  Cross-Site "), ""),
    (403, (PAGE, OURS, "Sec-Fetch-Site: anything"), ""),
    (403, (PAGE, OURS, "Sec-Fetch-Site:"), ""),
    (403, (PAGE, OURS, "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"), ""),
    (403, (QUERY, OURS, JSON, *fetch("cross-site", "no-cors", "empty")), READ),
    (403, ("GET /server_info HTTP/1.1", OURS, *fetch("cross-site", "no-cors", "image")), ""),
    (403, ("GET /kbo/status HTTP/1.1", OURS, *fetch("same-site", "no-cors", "script")), ""),
    (403, (SOCKET, OURS, *UPGRADE, *fetch("cross-site", "websocket", "websocket")), ""),
    # What a query costs
    *((400, (get(document), OURS), "") for document in COSTLY.values() if len(document) < 50_000),
    *((400, (QUERY, OURS, JSON), json.dumps({"query": text})) for text in COSTLY.values()),
    (200, (QUERY, OURS, JSON), json.dumps({"query": get_introspection_query()})),
    # Websockets
    (101, (SOCKET, OURS, *UPGRADE), ""),
    (101, (SOCKET, OURS, "Origin: http://127.0.0.1:PORT", *UPGRADE), ""),
    (403, (SOCKET, OURS, f"Origin: {EVIL}", *UPGRADE), ""),
    (403, (SOCKET, OURS, "Origin: null", *UPGRADE), ""),
    (403, (SOCKET, OURS, "Origin: http://localhost:PORT", *UPGRADE), ""),
    (421, (SOCKET, "Host: evil.example:PORT", "Origin: http://evil.example:PORT", *UPGRADE), ""),
    (405, (get(CHANGE), OURS, *UPGRADE), ""),
]


@pytest.mark.parametrize(("status", "lines", "body"), REQUESTS)
def test_each_request_is_answered_or_refused(
    server: Server, log: Path, status: int, lines: tuple[str, ...], body: str
) -> None:
    before = len(log.read_text())
    found, answer = ask(server, *lines, body=body)
    assert found == status, answer
    if status in (403, 405, 421) and not lines[0].startswith("HEAD"):
        (line,) = answer.splitlines()
        assert re.fullmatch(
            r"kbo_pipeline: [A-Za-z]+ '[ -~]+': (a|what|Host|Origin|Sec-Fetch-Site) [ -~]+", line
        )
        wait_until(lambda: f"refused: {line[14:]}" in log.read_text()[before:], "the log")


def test_nothing_of_this_has_changed_anything_until_a_program_asks_for_it(server: Server) -> None:
    assert len(REQUESTS) >= 25
    assert server.query(LIMITS)["instance"]["concurrencyLimits"] == []
    assert ask(server, QUERY, OURS, JSON, body=WRITE)[0] == 200
    (limit,) = server.query(LIMITS)["instance"]["concurrencyLimits"]
    assert limit["concurrencyKey"] == POOL


def test_what_others_write_comes_into_the_log_as_one_short_line(server: Server, log: Path) -> None:
    hostile = "Host: \xe9" + 5000 * "x"
    status, answer = ask(server, "GET /a%0Aforged%1b[2J HTTP/1.1", hostile)
    assert (status, len(answer.splitlines())) == (421, 1)
    assert len(answer) < 400
    assert r"GET '/a\nforged\x1b[2J'" in answer
    assert "\\xe9xxx" in answer
    assert not any(line.startswith("forged") for line in log.read_text().splitlines())


def test_the_ui_goes_on_working(server: Server, log: Path) -> None:
    index = requests.get(f"{server.address}/", timeout=30)
    assert "text/html" in index.headers["content-type"]
    assert index.headers["x-frame-options"] == "SAMEORIGIN"
    assert "content-security-policy" in index.headers
    for path in re.findall(r'src="(/[^"]+\.js)"', index.text)[:3]:
        assert requests.get(server.address + path, timeout=30).status_code == 200
    subscribe = {"id": "1", "type": "start", "payload": {"query": EVENTS}}
    with connect(
        server.address.replace("http", "ws") + "/graphql",
        origin=Origin(server.address),
        subprotocols=[Subprotocol("graphql-ws")],
    ) as channel:
        channel.send(json.dumps({"type": "connection_init"}))
        assert json.loads(channel.recv(30)) == {"type": "connection_ack"}
        channel.send(json.dumps(subscribe))
        found = json.loads(channel.recv(30))
        assert (found["type"], found["id"]) == ("data", "1")
        assert found["payload"]["data"]["pipelineRunLogs"]["__typename"].startswith(
            "PipelineRunLogs"
        )
        channel.send(json.dumps({"id": "2", "type": "start", "payload": {"query": CHANGE}}))
        while (found := json.loads(channel.recv(30)))["id"] == "1":
            assert found["type"] in ("data", "complete")
        assert (found["type"], found["id"]) == ("error", "2")  # only subscriptions go that way
        costly = {"query": "subscription " + COSTLY["aliases"]}
        channel.send(json.dumps({"id": "3", "type": "start", "payload": costly}))
        while (found := json.loads(channel.recv(30)))["id"] == "1":
            assert found["type"] in ("data", "complete")
        assert (found["type"], found["id"]) == ("error", "3")
        assert "more than 100 aliases" in found["payload"]["message"]
    assert noise(log.read_text()) == []


def test_who_comes_when_too_many_are_there_is_told_so(server: Server) -> None:
    address = urlsplit(server.address)
    assert address.hostname is not None and address.port is not None
    with ExitStack() as there:
        for _ in range(MAX_CONNECTIONS):
            connection = socket.create_connection((address.hostname, address.port), timeout=30)
            there.enter_context(connection)
        wait_until(lambda: ask(server, PAGE, OURS)[0] == 503, "a refusal")
    wait_until(lambda: ask(server, PAGE, OURS)[0] == 200, "an answer again")


def test_dagsters_own_client_goes_on_working(server: Server) -> None:
    client = DagsterGraphQLClient("127.0.0.1", port_number=urlsplit(server.address).port)
    with pytest.raises(DagsterGraphQLClientError, match="RunNotFound"):
        client.get_run_status("00000000-0000-4000-8000-000000000000")


@pytest.mark.long
def test_a_read_only_stack_shows_everything_and_changes_nothing(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "data")
    with running_server(pipeline, "--read-only") as server:
        sensors = (
            "{ sensorsOrError(repositorySelector: %s) { ... on Sensors { results { name } } } }"
        )
        where = "{" + ", ".join(f'{k}: "{v}"' for k, v in LOCATION.items()) + "}"
        found = server.query(sensors % where)["sensorsOrError"]["results"]
        assert "inbox_sensor" in {sensor["name"] for sensor in found}
        refused = server.query(
            "mutation($p: ExecutionParams!) { launchRun(executionParams: $p)"
            " { __typename ... on Error { message } } }",
            p={
                "selector": {"jobName": "stage_extract", **LOCATION},
                "mode": "default",
                "runConfigData": {},
            },
        )
        assert refused["launchRun"]["__typename"] == "UnauthorizedError"
        assert refused["launchRun"]["message"] != ""
        assert requests.get(f"{server.address}/kbo/status", timeout=30).status_code == 404
        changed = ask(server, QUERY, OURS, JSON, body=WRITE)
        assert POOL not in str(server.query(LIMITS)), changed
        assert server.runs("stage_extract") == []
        reported = f"{server.address}/report_asset_materialization/code"
        assert requests.post(reported, timeout=30).status_code == 401
        assert ask(server, PAGE, "Host: evil.example:PORT")[0] == 421
        port = urlsplit(server.address).port
        found = [tuple(c.laddr) for c in psutil.net_connections("inet") if c.status == "LISTEN"]
        assert [address for address in found if port in address] == [("127.0.0.1", port)]
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode)
            for path in pipeline.directory.iterdir()
            if path.is_dir()
        }
    postgres = modes.pop("postgres")
    assert modes == dict.fromkeys(("work", "inbox", "dagster_home"), 0o700)
    assert not postgres & 0o066  # root's PostgreSQL is another user, who has to come through
