"""docs/api.md: its commands and its program, run as they stand there against a `kbo start`."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster_graphql.schema import create_schema
from graphql import parse, validate

from kbo_pipeline.commands.demo import damage
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import BAD, Pipeline
from kbo_pipeline_tests.support.processes import wait_until
from kbo_pipeline_tests.support.server import running_server
from kbo_pipeline_tests.support.state_page import unnamed

TEXT = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
CALLS = {title for title, text in SECTIONS.items() if "curl " in text}
PLAIN = {"Start", "Progress", "Cancel", "Go on", "Roll back"}
FULL, UPDATE, NEXT = "0140-full", "0141-update", "0142-update"
ABSENT = {
    *("current_batch", "next_batch", "error", "operation", "seconds_left", "proof"),
    *("startTime", "endTime", "skipReason", "eventType"),
}
"""Fields that may be null."""
SAMPLE = Sample(enterprises=100, seed=8, change_shares=(0.5, 0.02))
"""Its first Update takes away 57 of 1,928 activities, 2.96 %, the second one 9."""


def block(title: str, language: str) -> str:
    """The only block of code in this language below a heading."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTIONS[title], re.DOTALL)
    return str(found)


class Api:
    """The commands of the document, run by a shell with values for its variables."""

    def __init__(self, address: str, directory: Path) -> None:
        self.names = {"KBO": address}
        self.called: set[str] = set()
        self.path = os.environ["PATH"]
        if shutil.which("curl") is None:
            directory.mkdir()
            ours = directory / "curl"
            ours.write_text(
                f'#!/bin/sh\nexec {sys.executable} -m kbo_pipeline_tests.support.curl "$@"\n'
            )
            ours.chmod(0o755)
            self.path = f"{directory}:{self.path}"

    def call(self, title: str, **names: str) -> Any:
        """Runs the command below a heading; its answer, of the shape that the document shows.

        Variables keep their values until the next call.
        """
        self.names |= names
        command = block(title, "bash")
        assert set(re.findall(r"^([A-Z]+)=", command, re.MULTILINE)) <= self.names.keys()
        done = subprocess.run(
            ["bash", "-euc", re.sub(r"^[A-Z]+=.*\n", "", command, flags=re.MULTILINE)],
            env={**os.environ, "PATH": self.path, **self.names},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        self.called.add(title)
        found = json.loads(done.stdout)
        check_like(found, json.loads(block(title, "json")), title)
        return found.get("data", found)

    def progress(self, extract: str) -> Any:
        return self.call("Progress", EXTRACT=extract)

    def wait_for(self, extract: str, status: str) -> Any:
        """The progress of an extract as soon as it has a status."""
        return self.wait_until(extract, lambda found: found["status"] == status, status)

    def wait_until(self, extract: str, ready: Callable[[Any], bool], what: str) -> Any:
        found: list[Any] = []

        def look() -> bool:
            found[:] = [self.progress(extract)]
            return ready(found[0])

        wait_until(look, f"{extract}: {what}")
        return found[0]

    def newest_run(self, extract: str) -> dict[str, Any]:
        runs = self.call("Runs", EXTRACT=extract)["runsOrError"]["results"]
        return dict(runs[0])


def check_like(found: Any, shown: Any, place: str) -> None:
    """Compares an answer with what the document shows: fields, types, and what kind it is."""
    name = place.rpartition(": ")[2]
    if name == "__typename":
        assert found == shown, place
    elif (place == "Progress: tables" and found == {}) or (found is None and name in ABSENT):
        return
    elif shown is None:
        assert name in ABSENT, f"{place}: {found}"
    elif isinstance(shown, dict):
        assert isinstance(found, dict) and found.keys() == shown.keys(), f"{place}: {found}"
        for each, value in shown.items():
            check_like(found[each], value, f"{place}: {each}")
    elif isinstance(shown, list):
        assert isinstance(found, list), f"{place}: {found}"
        for ours, theirs in zip(found[:1], shown[:1], strict=False):
            check_like(ours, theirs, place)
    else:
        assert type(found) is type(shown), f"{place}: {found}"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.rare
def test_each_command_and_the_program_do_what_they_say(tmp_path: Path) -> None:
    pipeline = Pipeline(
        tmp_path / "data",
        {"KBO_BATCH_ROWS": "10", "KBO_MAX_BATCHES": "50", "KBO_MAX_LOSS_PERCENT": "2"},
    )
    for make, number in ((SAMPLE.write_full, 140), (SAMPLE.write_update, 142)):
        make(pipeline.directory / "downloads", number)
    elsewhere = SAMPLE.write_update(tmp_path / "elsewhere", 141)
    with running_server(pipeline) as server:
        api = Api(server.address, tmp_path / "bin")

        def printed(extract: str) -> Any:
            return json.loads(pipeline.kbo("status", extract, "--json").stdout)

        api.call("Start", EXTRACT=FULL)
        api.wait_until(FULL, lambda found: found["overall"]["completed"] > 7, "a second batch")
        run = api.newest_run(FULL)
        assert (run["jobName"], run["status"]) == ("apply_batches", "STARTED")
        logged = api.call("Log lines", RUN=run["runId"], CURSOR="null")["logsForRun"]
        said = [line["message"] for line in logged["events"] if line["eventType"] is None]
        assert any(line.startswith(f"{FULL}-0001, 1 of ") for line in said), said
        later = api.call("Log lines", CURSOR=json.dumps(logged["cursor"]))["logsForRun"]["events"]
        assert not {line["message"] for line in later} & set(said)
        api.call("Cancel")
        found = api.wait_for(FULL, "cancelled")
        assert found == printed(FULL)
        assert 7 < found["overall"]["completed"] < found["overall"]["total"]
        every = found["overall"]["total"]
        assert api.call("Go on")["extract"] == FULL
        found = api.wait_for(FULL, "completed")
        assert found == printed(FULL)
        assert found["overall"] == {"completed": every, "total": every, "percentage": 100.0}

        sensors = {
            sensor["name"]: sensor for sensor in api.call("Sensors")["sensorsOrError"]["results"]
        }
        applying = sensors["apply_when_staged"]
        assert applying["sensorState"]["status"] == "RUNNING"
        api.call("Stop a sensor", SENSOR=applying["id"])
        api.call("Start with a ZIP", EXTRACT=UPDATE, ZIP=str(elsewhere))
        wait_until(lambda: api.newest_run(UPDATE)["status"] == "SUCCESS", "staging")
        listed = api.call("Extracts")["assetNodeOrError"]["assetPartitionStatuses"]
        assert (listed["published"], listed["not_published"]) == ([FULL], [UPDATE])
        staged = pipeline.directory / "staging" / f"{UPDATE}.duckdb"
        sound = damage(staged, BAD)
        started = api.call("Start a sensor", NAME="apply_when_staged")["startSensor"]
        assert started["sensorState"]["status"] == "RUNNING"
        found = api.wait_for(UPDATE, "failed")
        assert found == printed(UPDATE)
        assert {place["batch"] for place in found["failed_batches"]} == set(BAD)
        sound.replace(staged)
        api.call("Retry failed batches")
        found = api.wait_until(
            UPDATE, lambda found: "rows lost" in (found["error"] or ""), "a refused publication"
        )
        assert (found["status"], found["failed_batches"]) == ("failed", [])
        api.call("Accept a loss", WHO="Ann")
        api.wait_for(UPDATE, "completed")

        program = tmp_path / "import_extract.py"
        address = "http://127.0.0.1:3000"
        code = block("A program", "python")
        assert code.count(address) == 1
        program.write_text(code.replace(address, server.address), encoding="utf-8")
        done = pipeline.run(program, NEXT)
        told = done.stdout.splitlines()
        assert told[-1] == f"{NEXT}: completed, 100.0%"
        assert len(told) > 2, told
        unknown = pipeline.run(program, "0199-update", check=False)
        assert unknown.returncode == 1
        assert unknown.stderr.startswith("0199-update: no ZIP of it in ")

        api.call("Roll back", EXTRACT=NEXT)
        api.wait_for(NEXT, "pending")
        listed = api.call("Extracts")["assetNodeOrError"]["assetPartitionStatuses"]
        assert listed["published"] == [FULL, UPDATE]
        assert listed["not_published"] == [NEXT]
        assert api.called == CALLS
        assert unnamed(pipeline.directory) == ["start.log"]  # ours; the rest is in docs/state.md


def test_dagster_knows_all_that_is_asked_for() -> None:
    schema = create_schema().graphql_schema
    commands = re.findall(r"<<END\n(.*?)^END$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(commands) == len(CALLS) - len(PLAIN)
    for text in commands:
        assert validate(schema, parse(re.sub(r"\$[A-Z]+", "null", text))) == [], text


def test_the_table_names_each_call_and_links_lead_somewhere() -> None:
    assert len(CALLS) >= 14
    anchors = {title.lower().replace(" ", "-") for title in SECTIONS}
    table = "\n".join(line for line in TEXT.splitlines() if line.startswith("| "))
    links = re.findall(r"\[([^]]+)\]\(([^)]+)\)", TEXT)
    for title in CALLS:
        assert (title, f"#{title.lower().replace(' ', '-')}") in links
        assert f"[{title}](" in table
    for _, link in links:
        file, _, anchor = link.partition("#")
        assert (REPOSITORY / "docs" / file).is_file() if file else anchor in anchors, link


def test_an_answer_of_another_shape_is_found_out() -> None:
    shown = {"data": {"a": [{"__typename": "Good", "n": 1, "error": None}]}}
    check_like({"data": {"a": [{"__typename": "Good", "n": 2, "error": "x"}]}}, shown, "")
    check_like({"data": {"a": []}}, shown, "")
    wrongs: list[Any] = [
        {"errors": []},
        {"data": {"a": None}},
        {"data": {"a": [{"__typename": "Bad", "n": 1, "error": None}]}},
        {"data": {"a": [{"__typename": "Good", "n": "1", "error": None}]}},
        {"data": {"a": [{"__typename": "Good", "n": 1}]}},
    ]
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            check_like(wrong, shown, "")
