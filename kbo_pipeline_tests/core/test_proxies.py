"""Own addresses are asked directly, whatever proxy the environment names; others through it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import duckdb
import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from kbo_pipeline.core.environment import S3, is_direct, is_this_machine
from kbo_pipeline.core.errors import PortalError, StorageError
from kbo_pipeline.core.lake import _make_secrets
from kbo_pipeline.core.places import Lake
from kbo_pipeline.fetch.http import Limits, Web
from kbo_pipeline.operate.processes.start import answers
from kbo_pipeline.operate.repair.alerts import Alert, post

NAMES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
ALERT = Alert("event", "gap", None, "portal", "a gap", "wait for a Full")


class _Answering(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(host: str = "127.0.0.1") -> Iterator[tuple[str, list[str]]]:
    """A web server: its address, and what it is asked for; as a proxy, addresses."""
    asked: list[str] = []
    handler = type("Handler", (_Answering,), {"asked": asked})
    with ThreadingHTTPServer((host, 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://{host}:{server.server_port}", asked
        server.shutdown()


@pytest.fixture(params=[None, "localhost,.corp.example", "*.example,10.0.0.0/8", ""])
def proxied(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Every variable names a proxy, in small and in capital letters; yields what that is asked."""
    with answering() as (proxy, asked):
        for name in NAMES:
            monkeypatch.setenv(name, proxy)
            monkeypatch.setenv(name.upper(), proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            if request.param is not None:
                monkeypatch.setenv(name, request.param)
        yield asked


def test_the_own_web_server_is_asked_directly(proxied: list[str]) -> None:
    for host in ("127.0.0.1", "127.1.2.3"):
        with answering(host) as (address, asked):
            assert answers(f"{address}/server_info")
        assert asked == ["/server_info"]
    assert proxied == []


def test_a_portal_and_a_webhook_on_this_machine_are_asked_directly(proxied: list[str]) -> None:
    with answering() as (address, asked):
        Web(address, Limits()).page(f"{address}/list")
        post(ALERT, f"{address}/hook")
    assert asked == ["/list", "/hook"]
    assert proxied == []


def test_a_portal_and_a_webhook_elsewhere_are_asked_through_the_proxy(proxied: list[str]) -> None:
    Web("http://portal.invalid", Limits()).page("http://portal.invalid/list")
    post(ALERT, "http://hook.invalid/hook")
    assert proxied == ["http://portal.invalid/list", "http://hook.invalid/hook"]


def test_a_dead_proxy_is_no_way_to_a_portal_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"hook\.invalid: ProxyError"):
        post(ALERT, "http://hook.invalid/hook")
    with pytest.raises(PortalError):
        Web("http://portal.invalid", Limits(attempts=1)).page("http://portal.invalid/list")


@pytest.mark.parametrize(
    ("endpoint", "asked_through"),
    [
        ("http://127.0.0.1:9000", ""),
        ("http://localhost:9000", ""),
        ("http://minio.corp.example", ""),
        ("https://s3.example", "http://127.0.0.1:9"),
    ],
)
def test_files_of_a_lake_on_this_machine_are_asked_directly(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, asked_through: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", ".corp.example")
    s3 = S3("key", "secret", None, "us-east-1", endpoint)
    with duckdb.connect(":memory:") as connection:
        _make_secrets(
            connection, Lake((("host", "127.0.0.1"),), None, "s3://bucket/", "", s3), "lake"
        )
        found = connection.execute("SELECT current_setting('http_proxy')").fetchall()
    assert found == [(asked_through,)]


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True)),
        *(("kbo.localhost", True), ("[::1]", True), ("10.0.0.1", False), ("0.0.0.0", False)),
        *(("localhost.example", False), ("kbo.example", False), (None, False), ("", False)),
    ],
)
def test_what_is_this_machine(host: str | None, own: bool) -> None:
    assert is_this_machine(host) == own
    assert not own or is_direct(host)


ASKED = """
import sys
from kbo_pipeline.cli import main
from dagster._grpc.client import DagsterGrpcClient
main(["pause"], standalone_mode=False)
print(DagsterGrpcClient(host="127.0.0.1", port=int(sys.argv[1])).health_check_query())
"""


@pytest.mark.parametrize("name", ["http_proxy", "no_proxy"])
def test_the_code_location_is_asked_directly_over_tcp(tmp_path: Path, name: str) -> None:
    servicer = health.HealthServicer()
    servicer.set("DagsterApi", health_pb2.HealthCheckResponse.SERVING)
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    dead = {name: "http://127.0.0.1:9"}
    if name == "no_proxy":
        dead = {**dict.fromkeys(NAMES, "http://127.0.0.1:9"), "no_proxy": "localhost,.corp.example"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASKED, str(port)],
            env={**os.environ, "KBO_DATA_DIR": str(tmp_path), **dead},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        server.stop(None)
    assert done.stdout.splitlines()[-1] == "SERVING", done.stdout + done.stderr
