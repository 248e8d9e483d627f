"""Dagster's own commands, as its users type them in the repository, without a DAGSTER_HOME."""

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import requests

from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline, fetch
from kbo_pipeline_tests.support.processes import (
    free_port,
    noise,
    noise_in_logs,
    processes_of,
    started,
    wait_until,
)
from kbo_pipeline_tests.support.server import Server

EXTRACT = "0140-full"
DEFINITIONS = ("-m", "kbo_pipeline.definitions")
TABLE_NAMES = [table.name for table in TABLES]
STAGING = [f"import_staging_{name}" for name in [*TABLE_NAMES, "code"]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the repository: Dagster makes its temporary home in the working directory."""
    copy = tmp_path / "repository"
    shutil.copytree(
        REPOSITORY / "kbo_pipeline",
        copy / "kbo_pipeline",
        symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, copy)
    return copy


def with_download(directory: Path) -> Pipeline:
    """A pipeline with the ZIP of a Full in its downloads directory."""
    pipeline = Pipeline(directory)
    (directory / "downloads").mkdir(parents=True)
    Sample(enterprises=60, seed=3).write_full(directory / "downloads", 140)
    return pipeline


def published(pipeline: Pipeline) -> int:
    with pipeline.read() as connection:
        return int(fetch(connection, "SELECT max(extract_number) FROM import_jobs"))


def loads(server: Server) -> bool:
    try:
        found = server.query(
            "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus"
            " locationOrLoadError { __typename } } } } }"
        )
    except requests.ConnectionError:
        return False
    entries = found["workspaceOrError"]["locationEntries"]
    if not entries or entries[0]["loadStatus"] != "LOADED":
        return False
    assert [(entry["name"], entry["locationOrLoadError"]["__typename"]) for entry in entries] == [
        ("kbo_pipeline", "RepositoryLocation")
    ]
    return True


@pytest.mark.long
@pytest.mark.rare
def test_dagster_dev_loads_imports_and_ends_with_ctrl_c(tmp_path: Path, repository: Path) -> None:
    pipeline = with_download(tmp_path / "data")
    port = str(free_port())
    with started(pipeline, "dagster", "dev", "-p", port, cwd=repository) as process:
        server = Server(f"http://127.0.0.1:{port}")
        wait_until(partial(loads, server), "dagster dev", process)
        server.add_partition(EXTRACT)
        server.launch("stage_extract", EXTRACT)
        server.wait_for_run("publish_extract", "SUCCESS")
        assert noise(process.output()) == []
        # Ctrl-C may find Dagster in the middle of a sensor, which it then tells at length.
        assert process.end(signal.SIGINT, whole_group=True) == 0
    # Dagster's own code server may outlive `dagster dev` by its heartbeat of 45 s.
    wait_until(lambda: processes_of(pipeline.directory) == [], "the end of all its processes")
    assert list(repository.glob(".tmp_dagster_home_*")) == []
    assert published(pipeline) == 140


@pytest.mark.long
def test_assets_can_be_materialized_one_stage_after_the_other(repository: Path) -> None:
    pipeline = with_download(repository / "some" / "data")
    in_file = pipeline.settings | {"KBO_DATA_DIR": "some/data"}
    (repository / ".env").write_text("".join(f"{k}={v}\n" for k, v in in_file.items()))
    with pipeline.instance() as instance:
        pipeline.settings.clear()  # from here on the file counts
        instance.add_dynamic_partitions("kbo_extracts", [EXTRACT])
        for assets, option, partitions in (
            (["extract_zip", *STAGING], "--partition", EXTRACT),
            (TABLE_NAMES, "--partition-range", f"{EXTRACT}-0001...{EXTRACT}-0006"),
            (["code", "published_extract"], "--partition", EXTRACT),
        ):
            done = pipeline.run(
                *("-m", "dagster", "asset", "materialize", *DEFINITIONS),
                *("--select", ",".join(assets), option, partitions),
                cwd=repository,
            )
            assert noise(done.stderr) == []
        assert {run.status.value for run in instance.get_runs()} == {"SUCCESS"}
        status = json.loads(pipeline.kbo("status", "--json", cwd=repository).stdout)
    assert (status["job_id"], status["status"]) == (EXTRACT, "completed")
    assert status["overall"]["total"] == 6 * len(TABLES)
    assert published(pipeline) == 140
    assert noise_in_logs(pipeline.directory) == {}


def test_the_definitions_are_valid(repository: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "data")
    done = pipeline.run("-m", "dagster", "definitions", "validate", *DEFINITIONS, cwd=repository)
    assert "All code locations passed validation" in done.stdout
    assert "WARNING" not in done.stdout + done.stderr
    assert noise(done.stderr) == []
