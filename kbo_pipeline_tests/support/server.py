"""Talks to a running `kbo start` as the web UI does: over HTTP, in GraphQL."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.lakes import ASKED_FOR
from kbo_pipeline_tests.support.pipeline import Pipeline

LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "kbo_pipeline"}
DEAD_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY"), "http://127.0.0.1:9") | {
    "no_proxy": "localhost,.corp.example"
}
"""Nothing that a `kbo start` of the tests asks may go through a proxy: all of it is here."""
PATIENCE = 600.0 if ASKED_FOR else 120.0  # seconds, for a loaded machine


@dataclass(frozen=True)
class Server:
    """A web UI, by its address."""

    address: str

    def query(self, text: str, **variables: Any) -> Any:
        answer = requests.post(
            f"{self.address}/graphql",
            json={"query": text, "variables": variables},
            timeout=PATIENCE,
        )
        assert answer.ok, answer.text
        found = answer.json()
        assert not found.get("errors"), found
        return found["data"]

    def add_partition(self, extract: str) -> None:
        found = self.query(
            "mutation($key: String!, $where: RepositorySelector!) { addDynamicPartition("
            'partitionsDefName: "kbo_extracts", partitionKey: $key, repositorySelector: $where)'
            " { __typename } }",
            key=extract,
            where=LOCATION,
        )
        assert found["addDynamicPartition"]["__typename"] == "AddDynamicPartitionSuccess"

    def launch(self, job: str, partition: str) -> None:
        found = self.query(
            "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename } }",
            p={
                "selector": {"jobName": job, **LOCATION},
                "mode": "default",
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
            },
        )
        assert found["launchRun"]["__typename"] == "LaunchRunSuccess"

    def backfill(self, assets: Sequence[str], partitions: Sequence[str]) -> None:
        found = self.query(
            "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p)"
            " { __typename } }",
            p={
                "assetSelection": [{"path": [name]} for name in assets],
                "partitionNames": list(partitions),
            },
        )
        assert found["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess"

    def start_sensor(self, name: str) -> None:
        self.query(
            "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }",
            s={"sensorName": name, **LOCATION},
        )

    def stop_sensor(self, name: str) -> None:
        """Stops a sensor, once more where a tick under way has written that it runs."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._stop_sensor(name)
            time.sleep(2)
            if self.sensor_status(name) == "STOPPED":
                return
            assert time.monotonic() < deadline, f"{name} is not stopped"

    def _stop_sensor(self, name: str) -> None:
        found = self.query(
            "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s)"
            " { ... on Sensor { id } } }",
            s={"sensorName": name, **LOCATION},
        )
        self.query(
            "mutation($id: String!) { stopSensor(id: $id) { __typename } }",
            id=found["sensorOrError"]["id"],
        )

    def sensor_status(self, name: str) -> str:
        """`RUNNING` or `STOPPED`."""
        found = self.query(
            "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s)"
            " { ... on Sensor { sensorState { status } } } }",
            s={"sensorName": name, **LOCATION},
        )
        return str(found["sensorOrError"]["sensorState"]["status"])

    def ticks(self, sensor: str) -> list[str]:
        """What a sensor has said, the newest first; none of its ticks may have failed."""
        found = self.query(
            "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor {"
            " sensorState { ticks(limit: 200) { skipReason error { message } } } } } }",
            s={"sensorName": sensor, **LOCATION},
        )
        every = found["sensorOrError"]["sensorState"]["ticks"]
        assert [tick["error"] for tick in every if tick["error"]] == []
        return [tick["skipReason"] or "" for tick in every]

    def wait_for_ticks(self, count: int, *sensors: str) -> None:
        """Waits until each of these sensors has looked so many times more."""
        wanted = {sensor: len(self.ticks(sensor)) + count for sensor in sensors}
        deadline = time.monotonic() + PATIENCE
        while any(len(self.ticks(sensor)) < number for sensor, number in wanted.items()):
            assert time.monotonic() < deadline, wanted
            time.sleep(1)

    def runs(self, job: str) -> list[dict[str, Any]]:
        """The runs of a job, the oldest first."""
        found = self.query(
            "query($f: RunsFilter) { runsOrError(filter: $f) { ... on Runs"
            " { results { runId status tags { key value } } } } }",
            f={"pipelineName": job},
        )
        return list(reversed(found["runsOrError"]["results"]))

    def wait_for_run(self, job: str, status: str, count: int = 1) -> None:
        """Waits until so many runs of a job have a status."""
        deadline = time.monotonic() + PATIENCE
        while sum(run["status"] == status for run in self.runs(job)) < count:
            assert time.monotonic() < deadline, f"{job}: {self.runs(job)}"
            time.sleep(0.5)

    @staticmethod
    def extract_of(run: dict[str, Any]) -> str:
        return next(str(t["value"]) for t in run["tags"] if t["key"] == "kbo/extract")


@contextmanager
def running_server(pipeline: Pipeline, *options: str, cwd: Path = REPOSITORY) -> Iterator[Server]:
    """Runs `kbo start` on a free port until the block ends; it must end cleanly on SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipeline.prepare()
    log = (pipeline.directory / "start.log").open("w+")
    with log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kbo_pipeline.cli", "start", *options],
            env={**pipeline.environment, **DEAD_PROXY, "KBO_UI_PORT": str(port)},
            cwd=cwd,
            stdout=log,
            stderr=log,
        )
        try:
            server = Server(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + PATIENCE
            while "(Ctrl-C ends everything)" not in (pipeline.directory / "start.log").read_text():
                assert process.poll() is None, (pipeline.directory / "start.log").read_text()
                assert time.monotonic() < deadline, "kbo start is not ready"
                time.sleep(0.2)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE)
    assert code == 0
