"""Web server, daemon and code location as processes on three hosts, PostgreSQL on a fourth."""

import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import requests

from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.hosts import Host, hosts, wait_for, why_not
from kbo_pipeline_tests.support.pipeline import Pipeline, fetch
from kbo_pipeline_tests.support.postgres import password_server
from kbo_pipeline_tests.support.processes import noise_in_logs
from kbo_pipeline_tests.support.server import Server

PARTS = ("code", "daemon", "web")


def offer(code: Host, zip_file: Path) -> None:
    """Drops a ZIP into the inbox, which is on the host of the code location."""
    inbox = code.files / "data" / "inbox"
    shutil.copyfile(zip_file, inbox / zip_file.name)


def wait_for_extracts(server: Server, count: int) -> None:
    for job in ("stage_extract", "apply_batches", "publish_extract"):
        server.wait_for_run(job, "SUCCESS", count)


def child_of(process: psutil.Process, module: str) -> psutil.Process:
    (found,) = (child for child in process.children(recursive=True) if module in child.cmdline())
    return found


@pytest.mark.rare
@pytest.mark.timeout(900)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_parts_on_three_hosts_import_a_full_and_an_update(tmp_path: Path) -> None:
    sample = Sample(enterprises=60, seed=5)
    with ExitStack() as opened:
        # Short, since sockets are there: a path of one has 107 bytes at most.
        short = Path(opened.enter_context(TemporaryDirectory(prefix="kbo-hosts-")))
        network = opened.enter_context(hosts(short / "network", [*PARTS, "database"]))
        database, code = network["database"], network["code"]
        url = opened.enter_context(
            password_server(tmp_path / "server", database.address, database.namespace)
        )
        settings = {
            "DAGSTER_POSTGRES_URL": url,
            "KBO_CODE_HOST": code.address,
            "KBO_UI_HOST": network["web"].address,
        }
        # The web server first: it waits for the code location.
        started = {
            part: opened.enter_context(
                network[part].started(
                    *("kbo_pipeline.cli", "start", "--only", part), settings=settings
                )
            )
            for part in reversed(PARTS)
        }
        wait_for(started["code"], "code: runs")
        wait_for(started["web"], "web UI:")
        wait_for(started["daemon"], "daemon: runs")
        server = Server(f"http://{network['web'].address}:3000")

        offer(code, sample.write_full(tmp_path, 140))
        wait_for_extracts(server, 1)
        shown = requests.get(f"{server.address}/kbo/status", timeout=30).json()
        assert (shown["job_id"], shown["status"]) == ("0140-full", "completed")
        evil = requests.get(server.address, headers={"Host": "evil.example"}, timeout=30)
        assert evil.status_code == 421

        for part in ("daemon", "web"):  # before the daemon says that it misses the code location
            assert noise_in_logs(network[part].files / "data") == {}

        # All that is at work on the code location's host dies, and comes back by itself.
        child_of(psutil.Process(started["code"].popen.pid), "code-server").kill()
        wait_for(started["code"], "it is started again")
        offer(code, sample.write_update(tmp_path, 141))
        wait_for_extracts(server, 2)

        for part, process in started.items():
            assert process.end(signal.SIGTERM) == 0, (part, process.output())
        published = Pipeline(code.files / "data")
        with published.read() as connection:
            assert fetch(connection, "SELECT max(extract_number) FROM import_jobs") == 141
        truth = Core(tmp_path / "truth", batch_rows=200, max_batches=6)
        for zip_file in sorted(tmp_path.glob("*.zip")):
            truth.import_zip(zip_file)
        assert Core(published.directory).content_hash() == truth.content_hash()
        for part in ("daemon", "web"):
            files = [file for file in network[part].files.rglob("*") if file.is_file()]
            names = {file.name for file in files}
            assert not [name for name in names if name.endswith((".duckdb", ".zip"))], names
            assert not (network[part].files / "data" / "postgres").exists()
        assert os.listdir(code.files / "tmp") == []
