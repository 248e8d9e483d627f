"""Dagster's storage in a server of one's own, over TCP: its password stays in the environment."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg2
from psycopg2 import sql

from kbo_pipeline.sample import Sample
from kbo_pipeline_tests.pipeline import Pipeline, fetch
from kbo_pipeline_tests.processes import noise_in_logs, processes_of
from kbo_pipeline_tests.server import running_server
from kbo_pipeline_tests.test_postgres import PASSWORD, password_server

SECRETS = (PASSWORD, quote(PASSWORD, safe=""))


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
                "SELECT count(*), count(*) FILTER (WHERE position(%s IN t::text) > 0"
                " OR position(%s IN t::text) > 0) FROM {} t"
            ).format(sql.Identifier(table))
            cursor.execute(query, SECRETS)
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


def test_imports_over_tcp_leave_the_password_nowhere(tmp_path: Path) -> None:
    sample = Sample(enterprises=60, seed=3)
    with password_server(tmp_path / "server") as url, watched_command_lines() as words:
        pipeline = Pipeline(tmp_path / "data", {"DAGSTER_POSTGRES_URL": url})
        done = pipeline.kbo("import", sample.write_full(tmp_path, 140))
        assert done.stderr == ""
        sample.write_update(pipeline.directory / "downloads", 141)
        with running_server(pipeline) as server:
            server.add_partition("0141-update")
            server.launch("stage_extract", "0141-update")
            server.wait_for_run("publish_extract", "SUCCESS", count=2)
            shown = str(server.query("{ instance { info } }"))
        assert rows_with_secrets(url) == {}
    assert processes_of(pipeline.directory) == []
    with pipeline.read() as connection:
        assert fetch(connection, "SELECT max(extract_number) FROM import_jobs") == 141
    assert not (pipeline.directory / "postgres").exists()
    assert any("multiprocessing.spawn" in word for word in words)  # the run workers
    for secret in SECRETS:
        assert secret not in shown
        assert not [word for word in words if secret in word]
    assert files_with_secrets(tmp_path / "data") == []
    assert noise_in_logs(pipeline.directory) == {}
