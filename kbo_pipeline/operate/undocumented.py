"""What Dagster has and does not document, each part behind a function of ours.

`insides.py` lists the parts. Here they are imported when they are called, so that a version of
Dagster without one of them still runs: then those with a fallback are not called.
"""

import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster_postgres.utils import DagsterPostgresException as DagsterPostgresException
from sqlalchemy import Connection, and_, or_, select
from sqlalchemy.exc import SQLAlchemyError

from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.operate import insides

if TYPE_CHECKING:
    from dagster._core.scheduler.instigation import InstigatorState

POSTGRES_ERRORS = (SQLAlchemyError, DagsterPostgresException)
"""What Dagster's code raises when PostgreSQL is away, or refuses something."""

_FORGOTTEN = (
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_FAILED_TO_MATERIALIZE,
)

_NOT_CAPTURED = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}


def instance_without_output(home: Path) -> dg.DagsterInstance:
    """The instance of a Dagster home, which keeps nothing of what steps print.

    To keep it, Dagster would start four processes a step; Ctrl-C reaches them as well, and two of
    them answer with a traceback.
    """
    if not insides.are_tested():
        return dg.DagsterInstance.get()
    from dagster._core.instance.ref import InstanceRef

    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=_NOT_CAPTURED))


def in_one_line(error: SettingsError) -> dg.DagsterError:
    """Stands for an error of another process, which the web UI shows without its own frames."""
    if not insides.are_tested():
        return dg.DagsterInvalidDefinitionError(str(error))
    from dagster._core.errors import DagsterUserCodeProcessError
    from dagster_shared.error import SerializableErrorInfo

    info = SerializableErrorInfo(f"{error}\n", stack=[], cls_name=type(error).__name__)
    shown: dg.DagsterError = DagsterUserCodeProcessError(  # type: ignore[no-untyped-call]
        str(error), user_code_process_error_infos=[info]
    )
    return shown


def reported(
    context: dg.AssetExecutionContext, events: Sequence[dg.AssetMaterialization]
) -> Iterator[dg.DagsterEvent | dg.AssetMaterialization]:
    """Reports events together: our storage has all of them then, or none.

    One by one they take half as much processor time again as applying small batches does.
    """
    if not insides.are_tested():
        yield from events
        return
    from dagster._core.events import DagsterEventBatchMetadata

    step, together = context.get_step_execution_context(), str(uuid.uuid4())
    for place, event in enumerate(events, start=1):
        metadata = DagsterEventBatchMetadata(together, place == len(events))
        yield dg.DagsterEvent.asset_materialization(step, event, metadata)


def tags_of_runs(
    instance: dg.DagsterInstance, names: Collection[str], texts: Collection[str] | None
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Ids of runs with their tags of these names, the newest run first, without the runs' bodies.

    Args:
        instance: where the runs are recorded.
        names: of tags; a run has at least one of them.
        texts: what one of the tags is, or begins with before a `-`; None for anything.
    """
    if not insides.are_tested():
        for run in instance.get_runs():
            tags = {name: run.tags[name] for name in names if name in run.tags}
            if tags and (texts is None or any(map(_is_about(texts), tags.values()))):
                yield run.run_id, tags
        return
    from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

    column = RunTagsTable.c
    query = (
        select(column.run_id, column.key, column.value)
        .join(RunsTable, RunsTable.c.run_id == column.run_id)
        .where(column.key.in_(names))
        .order_by(RunsTable.c.id.desc())
    )
    if texts is not None:
        about = or_(
            column.value.in_(list(texts)), *(column.value.like(f"{text}-%") for text in texts)
        )
        query = query.where(
            column.run_id.in_(select(column.run_id).where(column.key.in_(names), about))
        )
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    found: dict[str, dict[str, str]] = {}
    with storage.connect() as connection:
        for run_id, name, value in connection.execute(query):
            found.setdefault(run_id, {})[name] = value
    yield from found.items()


def _is_about(texts: Collection[str]) -> Any:
    starts = tuple(f"{text}-" for text in texts)
    return lambda value: value in texts or value.startswith(starts)


def partitions_with_events(
    instance: dg.DagsterInstance, assets: Sequence[dg.AssetKey], extract: str
) -> dict[dg.AssetKey, list[str]]:
    """The partitions of an extract, and of its batches, that have events, by asset."""
    from dagster._core.storage.event_log import SqlEventLogStorage
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    events = SqlEventLogStorageTable.c
    query = (
        select(events.asset_key, events.partition)
        .distinct()
        .where(
            events.asset_key.in_([asset.to_string() for asset in assets]),
            events.dagster_event_type.in_([event_type.value for event_type in _FORGOTTEN]),
            or_(events.partition == extract, events.partition.like(f"{extract}-%")),
        )
    )
    found: dict[dg.AssetKey, list[str]] = {}
    with storage.index_connection() as connection:
        for name, partition in connection.execute(query):
            found.setdefault(dg.AssetKey(json.loads(name)), []).append(partition)
    return found


def wipe_partitions(connection: Connection, asset: str, partitions: Sequence[str]) -> None:
    """Removes all that makes partitions of an asset materialized, failed or in progress.

    The asset's cached status goes too, and its newest materialization, which Dagster then looks for
    among the events that are left.
    """
    from dagster._core.storage.event_log.schema import (
        AssetCheckExecutionsTable,
        AssetEventTagsTable,
        AssetKeyTable,
        SqlEventLogStorageTable,
    )

    events, checks = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c
    forgotten = and_(
        events.asset_key == asset,
        events.dagster_event_type.in_([event_type.value for event_type in _FORGOTTEN]),
        events.partition.in_(partitions),
    )
    # In the order of Dagster's own writing, which would wait for us or we for it: the events first,
    # then the row of the asset.
    connection.execute(
        AssetEventTagsTable.delete().where(
            AssetEventTagsTable.c.event_id.in_(select(events.id).where(forgotten))
        )
    )
    connection.execute(SqlEventLogStorageTable.delete().where(forgotten))
    connection.execute(
        AssetCheckExecutionsTable.delete().where(
            checks.asset_key == asset, checks.partition.in_(partitions)
        )
    )
    connection.execute(
        AssetKeyTable.update()
        .where(AssetKeyTable.c.asset_key == asset)
        .values(last_materialization=None, cached_status_data=None)
    )


def remove_checks_of_run(connection: Connection, run_id: str) -> None:
    """Removes the results of a run's asset checks, which Dagster keeps when it deletes the run."""
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Table

    connection.execute(Table.delete().where(Table.c.run_id == run_id))


def has_run(server: Mapping[str, Any], run_id: str) -> bool:
    """Tells whether a code server has a run; also when it does not answer: nobody knows then.

    Args:
        server: where it listens: `host` and `port`, or `socket`.
        run_id: the run.
    """
    if not insides.are_tested():
        return True
    from dagster._grpc.client import DagsterGrpcClient
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
    from dagster_shared.serdes import deserialize_value

    client = DagsterGrpcClient(
        host=server.get("host", "localhost"),
        port=server.get("port"),
        socket=server.get("socket"),
    )
    try:
        answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=5)
    except dg.DagsterError:  # unreachable: one that has died is replaced, and told as such
        return True
    return deserialize_value(answer, CanCancelExecutionResult).can_cancel


def has_code_server(where: Mapping[str, Any], seconds: int) -> bool:
    """Tells whether a code server answers.

    Args:
        where: it listens: `host` and `port`, or `socket`.
        seconds: in which it has to.
    """
    if not insides.are_tested():
        return True
    from dagster._grpc.client import DagsterGrpcClient

    try:
        DagsterGrpcClient(**where).get_server_id(timeout=seconds)
    except dg.DagsterError:
        return False
    return True


def sensor_states(instance: dg.DagsterInstance) -> list["InstigatorState"]:
    """What Dagster knows of each sensor that has ever looked, or was started or stopped."""
    states = instance.all_instigator_state()
    return [state for state in states if state.instigator_type.value == "SENSOR"]


def may_be_retried(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether Dagster's limit of retries allows one more of a failed run."""
    if not insides.are_tested():
        return False
    from dagster._core.execution.retries import auto_reexecution_should_retry_run

    return bool(auto_reexecution_should_retry_run(instance, run, None))


def retry_once_more(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> None:
    """Reports the failure of a run again, upon which Dagster decides anew whether to retry it."""
    from dagster._core.events import JobFailureData, RunFailureReason

    failure = JobFailureData(error=None, failure_reason=RunFailureReason.RUN_EXCEPTION)
    instance.report_run_failed(run, reason, failure)
