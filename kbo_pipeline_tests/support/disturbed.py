"""An import of many batches under `kbo start`, to be disturbed."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import dagster as dg
import pytest

from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.operate.processes.children import end_leftovers
from kbo_pipeline.read.published import content_hash
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.lakes import ASKED_FOR
from kbo_pipeline_tests.support.pipeline import Pipeline, fetch, materializations
from kbo_pipeline_tests.support.processes import Started, free_port, started, wait_until
from kbo_pipeline_tests.support.server import Server

EXTRACT = "0140-full"
KBO = ("kbo_pipeline.cli",)
# In a lake fewer take as long.
MANY_BATCHES = {"KBO_BATCH_ROWS": "10", "KBO_MAX_BATCHES": "30" if ASKED_FOR else "120"}


@pytest.fixture(scope="module")
def zip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Sample(enterprises=60, seed=3).write_full(tmp_path_factory.mktemp("zips"), 140)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, zip_file: Path) -> str:
    """The content of the register after an import that nothing disturbs."""
    core = Core(tmp_path_factory.mktemp("undisturbed"))
    core.import_zip(zip_file)
    return core.content_hash()


@pytest.fixture
def pipeline(tmp_path: Path, zip_file: Path) -> Pipeline:
    """A pipeline with the ZIP of a Full in its downloads, and time to kill something."""
    pipeline = Pipeline(tmp_path, MANY_BATCHES | {"KBO_UI_PORT": str(free_port())})
    (tmp_path / "downloads").mkdir()
    shutil.copy(zip_file, tmp_path / "downloads")
    return pipeline


@pytest.fixture
def instance(pipeline: Pipeline) -> Iterator[dg.DagsterInstance]:
    with pipeline.instance() as instance:
        instance.add_dynamic_partitions("kbo_extracts", [EXTRACT])
        try:
            yield instance
        finally:
            end_leftovers(load_settings(pipeline.environment))  # of a test that has failed


@contextmanager
def kbo_start(pipeline: Pipeline) -> Iterator[tuple[Started, Server]]:
    """A `kbo start` whose web UI answers."""
    with started(pipeline, *KBO, "start") as process:
        wait_until(partial(process.says, "web UI:"), "kbo start", process)
        yield process, Server(f"http://127.0.0.1:{pipeline.settings['KBO_UI_PORT']}")
        if process.popen.poll() is None:
            assert process.end(signal.SIGTERM) == 0


def applied(instance: dg.DagsterInstance) -> int:
    return len(materializations(instance, "branch"))


def wait_for_more(instance: dg.DagsterInstance, process: Started, batches: int = 3) -> None:
    """Waits until some more batches are applied."""
    least = applied(instance) + batches
    wait_until(lambda: applied(instance) >= least, f"{least} batches", process)


def wait_until_published(instance: dg.DagsterInstance, process: Started) -> None:
    wait_until(lambda: materializations(instance, "published_extract"), "publication", process)
    success = dg.RunsFilter(job_name="publish_extract", statuses=[dg.DagsterRunStatus.SUCCESS])
    wait_until(
        lambda: instance.get_runs(success),
        "the end of the run that publishes",
        process,
    )


def check_published(pipeline: Pipeline, undisturbed: str) -> None:
    """Readers have the extract as if nothing had happened; each batch was applied once."""
    with pipeline.read() as reader:
        assert content_hash(reader) == undisturbed
        total = fetch(reader, "SELECT total_batches FROM import_jobs")
        assert total > 20
        rows = reader.execute(
            "SELECT status, count(*) FROM import_job_batches GROUP BY status"
        ).fetchall()
        assert rows == [("completed", 7 * total)]


def of_postgres(words: list[str]) -> bool:
    """Whether a command line is of the embedded server, or of what stops it at last."""
    return "postgres" in words[0] or words[-2:-1] == ["keeper"]
