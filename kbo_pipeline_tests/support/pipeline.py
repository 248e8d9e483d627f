"""A whole pipeline in a directory of its own: real processes, real PostgreSQL, real files.

Its register is a file, or with `TEST_DATABASE=ducklake` a lake: what `KBO_DATABASE` names.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster_postgres import PostgresRunStorage
from sqlalchemy import text

from kbo_pipeline.core.places import Place
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.operate.runs.partitions import kbo_batches
from kbo_pipeline.read.published import open_published, published_state_of
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.commands import copy_cluster, in_process, only_variables
from kbo_pipeline_tests.support.core import publication_of
from kbo_pipeline_tests.support.lakes import ASKED_FOR, lake_of, variables

_OURS = ("KBO_", "DAGSTER_")
_FINISH = """
import sys
from kbo_pipeline.commands.runs import finish_extract
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.text import run
from kbo_pipeline.operate.instance import open_instance

def finish():
    with open_instance(load_settings()) as instance:
        finish_extract(instance, ExtractKey.parse(sys.argv[1]), {})

run("finish", finish)
"""

_PATIENCE = 900
"""Seconds that a command may take; pytest has a limit for the test, which is mostly less."""


@dataclass
class Pipeline:
    """A data directory and the settings of the processes that work on it."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = {
            "KBO_DATA_DIR": str(self.directory),
            "KBO_BATCH_ROWS": "200",
            "KBO_MAX_BATCHES": "6",
            "MPLCONFIGDIR": str(REPOSITORY / "build" / "matplotlib"),  # fonts, looked for once
            "KBO_MAX_LOSS_PERCENT": "100",  # in a small register any loss is many percent
            "KBO_MAX_LOSS_PERCENT_FULL": "100",
            **self.settings,
        }
        if ASKED_FOR and "KBO_DATABASE" not in self.settings:
            self.settings |= variables(lake_of(self.directory))

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the processes: the machine's, without settings of ours."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
        return inherited | self.settings

    @property
    def database(self) -> Path:
        """What readers open, where that is a file."""
        return self.directory / "kbo.duckdb"

    @property
    def readers(self) -> Place:
        """What readers open, wherever it is."""
        return load_settings({"KBO_DATA_DIR": str(self.directory), **self.environment}).database

    def kbo(
        self, *arguments: str | Path, check: bool = True, cwd: Path = REPOSITORY
    ) -> subprocess.CompletedProcess[str]:
        """Runs the command line in this process, which has imported Dagster already.

        From the main thread alone. What is logged, and Python's warnings, are not in its output.
        """
        done = in_process(*arguments, environment=self.environment, cwd=cwd)
        return _checked(done, check)

    def kbo_process(
        self, *arguments: str | Path, check: bool = True, cwd: Path = REPOSITORY
    ) -> subprocess.CompletedProcess[str]:
        """Runs the command line in a process of its own, which takes seconds to begin."""
        return self.run("-m", "kbo_pipeline.cli", *arguments, check=check, cwd=cwd)

    def dagster(self, *arguments: str | Path, check: bool = True) -> None:
        """Runs one of Dagster's own commands, in the repository as its users do."""
        self.run("-m", "dagster", *arguments, check=check)

    def finish(self, extract: str) -> subprocess.CompletedProcess[str]:
        """Applies what is staged of an extract, as `kbo import` does when it has staged it."""
        return self.run("-c", _FINISH, extract, check=False)

    def run(
        self,
        *arguments: str | Path,
        check: bool = True,
        cwd: Path = REPOSITORY,
        settings: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**self.environment, **(settings or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        return _checked(done, check)

    def prepare(self) -> None:
        """Makes the directory, with a database in which Dagster's tables are."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if "DAGSTER_POSTGRES_URL" not in self.settings:
            copy_cluster(self.directory / "postgres")

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """The Dagster instance of the pipeline, for looking at what is recorded."""
        self.prepare()
        home = self.directory / "dagster_home"
        home.mkdir(exist_ok=True)
        shutil.copyfile(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
        with (
            only_variables(self.environment | {"DAGSTER_HOME": str(home)}),
            dg.DagsterInstance.get() as instance,
        ):
            # Without its file Dagster takes SQLite, as where the home's path is a pattern: [x].
            assert isinstance(instance.run_storage, PostgresRunStorage), home
            yield instance

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Opens the published register as a reader does."""
        with (
            duckdb.connect(":memory:") as connection,
            open_published(connection, self.readers),
        ):
            yield connection

    @property
    def is_published(self) -> bool:
        """Whether readers have an extract."""
        return bool(published_state_of(self.readers).published)

    def publication(self) -> object:
        """What every publication changes."""
        return publication_of(self.readers)


def _checked(
    done: subprocess.CompletedProcess[str], check: bool
) -> subprocess.CompletedProcess[str]:
    if check and done.returncode != 0:
        raise AssertionError(f"{done.args} ended with {done.returncode}:\n{done.stderr}")
    return done


def partition_states(instance: dg.DagsterInstance, extract: str) -> dict[str, dict[str, str]]:
    """The state of each batch partition of an extract, by table name, as Postgres holds it."""
    keys = [k for k in instance.get_dynamic_partitions("kbo_batches") if k.startswith(extract)]
    states: dict[str, dict[str, str]] = {}
    for table in TABLES:
        found = instance.get_status_by_partition(dg.AssetKey(table.name), keys, kbo_batches)
        states[table.name] = {
            key: status.value if status else "MISSING" for key, status in (found or {}).items()
        }
    return states


def materializations(instance: dg.DagsterInstance, asset: str) -> Mapping[str, int]:
    """How often each partition of an asset was materialized."""
    counts: dict[str, int] = {}
    for record in instance.fetch_materializations(dg.AssetKey(asset), limit=10_000).records:
        partition = str(record.partition_key)
        counts[partition] = counts.get(partition, 0) + 1
    return counts


_PARTITIONED = "{ assetNodes { assetKey { path } isPartitioned } }"
_STALE = """
query($keys: [AssetKeyInput!]) {
  assetNodes(assetKeys: $keys) { assetKey { path } partitionKeys staleStatusByPartition }
}
"""


def stale_partitions(instance: dg.DagsterInstance) -> list[str]:
    """The partitions that the UI calls out of sync, as it asks its server for them in GraphQL."""
    from dagster_graphql.schema import create_schema

    code = LoadableTargetOrigin(
        executable_path=sys.executable, module_name="kbo_pipeline.definitions"
    )
    origin = InProcessCodeLocationOrigin(code, location_name="kbo_pipeline")
    with WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget([origin])) as workspace:
        schema, context = create_schema(), workspace.create_request_context()

        def ask(query: str, **variables: Any) -> list[dict[str, Any]]:
            answer = schema.execute(query, context_value=context, variable_values=variables)
            assert not answer.errors, answer.errors
            return list(answer.data["assetNodes"])

        keys = [node["assetKey"] for node in ask(_PARTITIONED) if node["isPartitioned"]]
        assert len(keys) > len(TABLES)
        nodes = ask(_STALE, keys=keys)
    return [
        f"{'/'.join(node['assetKey']['path'])} {partition}"
        for node in nodes
        for partition, status in zip(
            node["partitionKeys"], node["staleStatusByPartition"], strict=True
        )
        if status == "STALE"
    ]


def run_status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    """The status of a run that there must be."""
    run = instance.get_run_by_id(run_id)
    assert run is not None, run_id
    return run.status


def fetch(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The single value of a query."""
    (row,) = connection.execute(query).fetchall()
    return row[0]


def forget_everything(instance: dg.DagsterInstance) -> None:
    instance.wipe_assets(instance.all_asset_keys())
    for run in instance.get_runs():
        instance.delete_run(run.run_id)
    for key in instance.get_dynamic_partitions("kbo_extracts"):
        instance.delete_dynamic_partition("kbo_extracts", key)
    assert isinstance(instance.run_storage, SqlRunStorage)
    with instance.run_storage.connect() as connection:
        connection.execute(text("DELETE FROM kvs"))


BAD = (2, 4)


def log_entry(
    run: dg.DagsterRun, event: dg.DagsterEvent, timestamp: float | None = None
) -> dg.EventLogEntry:
    return dg.EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        level="debug",
        user_message="",
        run_id=run.run_id,
        timestamp=timestamp or time.time(),
        job_name=run.job_name,
        dagster_event=event,
    )
