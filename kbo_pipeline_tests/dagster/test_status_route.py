"""`/kbo/status`: what `kbo status --json` prints, and one line where that is an error."""

import json
from collections.abc import Iterator

import dagster as dg
import pytest
import requests
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import text

from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.processes import web_server
from kbo_pipeline_tests.support.server import Server

EXTRACT = "0140-full"
FRESH = "no-store"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("alone"))
    with pipeline.instance():
        yield pipeline


@pytest.fixture(scope="module")
def server(alone: Pipeline) -> Iterator[Server]:
    with web_server(alone) as (server, _):
        yield server


@pytest.fixture(scope="module")
def instance(alone: Pipeline) -> Iterator[dg.DagsterInstance]:
    with alone.instance() as instance:
        yield instance


@pytest.mark.parametrize(
    ("path", "status", "line"),
    [
        ("", 404, "no extract yet; start with kbo import ZIP"),
        ("/0999-update", 404, "0999-update: no such extract; see kbo status for the one at work"),
        ("/0140_full", 400, "'0140_full' is not an extract; expected a key such as 0141-update"),
        ("/140-full", 400, "'140-full' is not an extract; expected a key such as 0141-update"),
        ("/%C3%A9%09", 400, r"'é\t' is not an extract; expected a key such as 0141-update"),
    ],
)
def test_what_cannot_be_told_is_one_line(server: Server, path: str, status: int, line: str) -> None:
    answer = requests.get(f"{server.address}/kbo/status{path}", timeout=60)
    assert (answer.status_code, answer.text) == (status, f"kbo_pipeline: {line}\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == FRESH


def test_it_is_for_reading_and_behind_the_guard(server: Server) -> None:
    address = f"{server.address}/kbo/status"
    for method in ("POST", "PUT", "DELETE"):
        assert requests.request(method, address, timeout=60).status_code == 405
    evil = {"Host": "evil.example"}
    assert requests.get(address, headers=evil, timeout=60).status_code == 421
    page = {"Origin": "http://evil.example"}
    assert requests.get(address, headers=page, timeout=60).status_code == 403
    for path in ("/kbo/", "/kbo/state", "/kbo/status/0140-full/tables"):
        assert requests.get(server.address + path, timeout=60).status_code == 404, path


def test_it_answers_what_the_command_prints(
    server: Server, alone: Pipeline, instance: dg.DagsterInstance
) -> None:
    instance.add_dynamic_partitions("kbo_extracts", [EXTRACT])
    for status in ("pending", "failed"):
        printed = json.loads(alone.kbo("status", EXTRACT, "--json").stdout)
        assert printed["status"] == status
        for path in ("", f"/{EXTRACT}"):
            answer = requests.get(f"{server.address}/kbo/status{path}", timeout=60)
            assert (answer.status_code, answer.json()) == (200, printed)
            assert answer.headers["cache-control"] == FRESH
        alone.kbo("retry", EXTRACT, check=False)  # there is no ZIP of it


def test_what_storage_does_not_tell_is_one_line_too(
    server: Server, instance: dg.DagsterInstance
) -> None:
    def rename(table: str, name: str) -> None:
        storage = instance.event_log_storage
        assert isinstance(storage, PostgresEventLogStorage)
        with storage.index_connection() as connection:
            connection.execute(text(f"ALTER TABLE {table} RENAME TO {name}"))

    instance.add_dynamic_partitions("kbo_extracts", [EXTRACT])
    address = f"{server.address}/kbo/status/{EXTRACT}"
    rename("event_logs", "away")
    try:
        answer = requests.get(address, timeout=60)
    finally:
        rename("away", "event_logs")
    assert answer.status_code == 503
    assert answer.text == (
        'kbo_pipeline: Dagster\'s storage: relation "event_logs" does not exist; ask again later\n'
    )
    assert requests.get(address, timeout=60).status_code == 200
