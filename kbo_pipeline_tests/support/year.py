"""Fills Dagster's storage as if extracts had been imported day by day, without importing any."""

import time
import uuid
from collections.abc import Sequence

import dagster as dg
from dagster._core.events import (
    AssetMaterializationPlannedData,
    DagsterEvent,
    StepMaterializationData,
)
from dagster._core.events.log import EventLogEntry
from dagster_postgres import PostgresEventLogStorage

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.operate.runs.partitions import register_batches, register_extract
from kbo_pipeline.operate.runs.progress import (
    ASSETS_OF_JOBS,
    EXTRACT_TAG,
    RANGE_END_TAG,
    RANGE_START_TAG,
)

_ROWS_A_STATEMENT = 4000


class Year:
    """Runs, partitions and events of extracts; what is written at the end is written at once."""

    def __init__(self, instance: dg.DagsterInstance, batches: int) -> None:
        """Takes the instance, and how many batches each extract has."""
        assert isinstance(instance.event_log_storage, PostgresEventLogStorage)
        self._instance, self._storage = instance, instance.event_log_storage
        self._batches = batches
        self._events: list[EventLogEntry] = []
        self._newest: dict[dg.AssetKey, EventLogEntry] = {}

    def import_extract(
        self,
        key: ExtractKey,
        jobs: Sequence[str] = tuple(ASSETS_OF_JOBS),
        batches: int | None = None,
    ) -> None:
        """Notes the runs of an extract, with the events of their assets; of so many batches."""
        count = self._batches if batches is None else batches
        keys = [f"{key}-{number:04d}" for number in range(1, count + 1)]
        register_extract(self._instance, key)
        register_batches(self._instance, key, keys)
        for job in jobs:
            tags = {EXTRACT_TAG: str(key), "dagster/partition": str(key)}
            partitions = [str(key)]
            if job == "apply_batches":
                tags = {EXTRACT_TAG: str(key)}
                tags |= {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]}
                partitions = keys
            self.run(job, ASSETS_OF_JOBS[job], partitions, tags)

    def run(
        self,
        job: str,
        assets: Sequence[str],
        partitions: Sequence[str],
        tags: dict[str, str],
        status: dg.DagsterRunStatus = dg.DagsterRunStatus.SUCCESS,
    ) -> str:
        """Notes a run and the events of its partitions; those of a failed one are planned only."""
        run_id = str(uuid.uuid4())
        self._instance.add_run(dg.DagsterRun(job_name=job, run_id=run_id, status=status, tags=tags))
        done = status == dg.DagsterRunStatus.SUCCESS
        for is_planned in (True, False) if done else (True,):
            for asset in map(dg.AssetKey, assets):
                for partition in partitions:
                    self._note(run_id, job, asset, partition, is_planned=is_planned)
        if len(self._events) > _ROWS_A_STATEMENT:
            self.write()
        return run_id

    def write(self) -> None:
        """Writes the events that were noted, as Dagster's storage does with a batch of them."""
        if self._events:
            with self._storage.index_transaction() as connection:
                connection.execute(self._storage.prepare_insert_event_batch(self._events))
            self._events.clear()
        for asset, event in self._newest.items():
            records = self._instance.fetch_materializations(asset, limit=1).records
            self._storage.store_asset_event(event, records[0].storage_id)
        self._newest.clear()

    def _note(
        self, run_id: str, job: str, asset: dg.AssetKey, partition: str, *, is_planned: bool
    ) -> None:
        if is_planned:
            data = AssetMaterializationPlannedData(asset, partition=partition)
            happened = DagsterEvent.build_asset_materialization_planned_event(job, job, data)
        else:
            materialization = dg.AssetMaterialization(
                asset, partition=partition, metadata={"records": 100, "seconds": 0.01}
            )
            happened = DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                job_name=job,
                step_key=job,
                event_specific_data=StepMaterializationData(materialization),
            )
        event = EventLogEntry(  # type: ignore[no-untyped-call]
            error_info=None,
            level=20,
            user_message="",
            run_id=run_id,
            timestamp=time.time(),
            step_key=job,
            job_name=job,
            dagster_event=happened,
        )
        self._events.append(event)
        if not is_planned:
            self._newest[asset] = event
