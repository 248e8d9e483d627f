"""What Dagster has noted of an import: `python -m ...bench.records phases KEY|fill|idle DIRECTORY`.

A process of its own, so that an embedded PostgreSQL has ended when that has: the data directory is
copied afterwards.
"""

import json
import sys
import time
from pathlib import Path

import dagster as dg
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import text

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.operate.runs.progress import EXTRACT_TAG
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.year import Year

STEPS = {
    "import_staging": "stage",
    "apply_to_register": "apply",
    "publish": "publish",
}
"""The steps that work on the register, and what the figures call them."""

_ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


def phases(instance: dg.DagsterInstance, key: str) -> dict[str, float]:
    """Seconds of the steps that worked on the register for an extract."""
    found: dict[str, float] = {}
    for run in instance.get_runs(dg.RunsFilter(tags={EXTRACT_TAG: key})):
        for step in instance.get_run_step_stats(run.run_id):
            phase = STEPS.get(step.step_key)
            if phase and step.start_time and step.end_time:
                found[phase] = found.get(phase, 0.0) + step.end_time - step.start_time
    if found.keys() != set(STEPS.values()):
        raise RuntimeError(f"{key}: steps noted: {', '.join(found) or 'none'}")
    return found


def size(instance: dg.DagsterInstance) -> int:
    """Bytes of Dagster's database."""
    storage = instance.event_log_storage
    assert isinstance(storage, PostgresEventLogStorage)
    with storage.index_connection() as connection:
        found = connection.execute(text("SELECT pg_database_size(current_database())")).scalar()
    return int(found or 0)


def fill(instance: dg.DagsterInstance, pipeline: Pipeline) -> None:
    """Notes runs and events of all extracts in the register, as if Dagster had imported them."""
    query = "SELECT id, total_batches FROM import_jobs ORDER BY extract_number"
    with pipeline.read() as reader:
        extracts = reader.execute(query).fetchall()
    year = Year(instance, 1)
    for key, batches in extracts:
        year.import_extract(ExtractKey.parse(key), batches=batches)
    year.write()


def wait_until_idle(instance: dg.DagsterInstance) -> None:
    """Waits until no run is at work."""
    statuses = [status for status in dg.DagsterRunStatus if status not in _ENDED]
    while instance.get_runs(dg.RunsFilter(statuses=statuses)):
        time.sleep(0.1)


def main(what: str, directory: str, *key: str) -> None:
    """Does one of these; prints JSON."""
    pipeline = Pipeline(Path(directory))
    with pipeline.instance() as instance:
        if what == "fill":
            fill(instance, pipeline)
        elif what == "idle":
            wait_until_idle(instance)
        print(json.dumps({"phases": phases(instance, *key) if key else {}, "size": size(instance)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
