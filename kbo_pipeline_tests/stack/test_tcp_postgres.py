"""Over TCP to a PostgreSQL of one's own, and over HTTP to the portal: passwords stay secret."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus

import psutil
import psycopg2
import pytest
from psycopg2 import sql

from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.faulty_portal import Effect, Fault, FaultyPortal, Kind
from kbo_pipeline_tests.support.pipeline import Pipeline, fetch
from kbo_pipeline_tests.support.postgres import PASSWORD, password_server
from kbo_pipeline_tests.support.processes import noise_in_logs, processes_of, wait_until
from kbo_pipeline_tests.support.server import running_server

PORTAL_PASSWORD = "portal-canary &'$"
WEBHOOK_PATH = "webhook-canary"
SECRETS = (
    *(form for word in (PASSWORD, PORTAL_PASSWORD) for form in (word, quote(word, safe=""))),
    quote_plus(PORTAL_PASSWORD),
    WEBHOOK_PATH,
)


@contextmanager
def watched_command_lines() -> Iterator[set[str]]:
    """The words of all command lines that any process has while the block runs."""
    words: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            for process in psutil.process_iter():
                try:
                    words.update(process.cmdline())
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield words
    finally:
        ended.set()
        watcher.join()


def rows_with_secrets(url: str) -> dict[str, int]:
    """Tables of Dagster's storage that hold the password, with the number of such rows."""
    found = {}
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        )
        tables = [name for (name,) in cursor.fetchall()]
        assert {"runs", "event_logs", "instigators"} <= set(tables)
        for table in tables:
            query = sql.SQL(
                "SELECT count(*), count(*) FILTER (WHERE EXISTS ("
                "SELECT FROM unnest(%s) AS secret WHERE position(secret IN t::text) > 0))"
                " FROM {} t"
            ).format(sql.Identifier(table))
            cursor.execute(query, (list(SECRETS),))
            ((rows, secret_rows),) = cursor.fetchall()
            assert rows or table not in ("runs", "event_logs")
            if secret_rows:
                found[table] = secret_rows
    connection.close()
    return found


def files_with_secrets(directory: Path) -> list[Path]:
    secrets = [secret.encode() for secret in SECRETS]
    return [
        file
        for file in directory.rglob("*")
        if file.is_file() and any(secret in file.read_bytes() for secret in secrets)
    ]


@pytest.mark.rare
def test_passwords_are_left_nowhere(tmp_path: Path) -> None:
    sample = Sample(enterprises=60, seed=3)
    offered = tmp_path / "offered"
    sample.write_update(offered, 141)
    with (
        password_server(tmp_path / "server") as url,
        FaultyPortal(offered, accounts={"me": PORTAL_PASSWORD}) as portal,
        watched_command_lines() as words,
    ):
        portal.add_fault(Fault(Kind.LIST, Effect.PAGE, times=2))  # which becomes an error
        settings = {
            "DAGSTER_POSTGRES_URL": url,
            "KBO_PORTAL_URL": portal.url,
            "KBO_USERNAME": "me",
            "KBO_PASSWORD": PORTAL_PASSWORD,
            "KBO_POLL_SECONDS": "5",
            "KBO_ALERT_WEBHOOK": f"http://127.0.0.1:9/{WEBHOOK_PATH}",
        }
        pipeline = Pipeline(tmp_path / "data", settings)
        done = pipeline.kbo("import", sample.write_full(tmp_path, 140))
        assert done.stderr == ""
        (tmp_path / "data" / "inbox").mkdir(exist_ok=True)
        with running_server(pipeline) as server:
            server.wait_for_run("publish_extract", "SUCCESS", count=2)
            sample.write_update(offered, 143)  # a gap: an alert that the webhook does not take
            said = "KBO_ALERT_WEBHOOK at 127.0.0.1: ConnectionError"
            wait_until(lambda: said in str(server.ticks("alert_sensor")), "the alert")
            shown = str(server.query("{ instance { info } }"))
        assert rows_with_secrets(url) == {}
    assert processes_of(pipeline.directory) == []
    with pipeline.read() as connection:
        assert fetch(connection, "SELECT max(extract_number) FROM import_jobs") == 141
    assert portal.count(Kind.LOGIN) >= 2
    assert not (pipeline.directory / "postgres").exists()
    assert any("multiprocessing.forkserver" in word for word in words)  # the run workers
    for secret in SECRETS:
        assert secret not in shown
        assert not [word for word in words if secret in word]
    assert files_with_secrets(tmp_path / "data") == []
    assert noise_in_logs(pipeline.directory) == {}
