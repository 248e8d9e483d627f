"""Dagster's run, event and schedule storage, as `dagster.yaml` names it."""

import functools
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    EventLogEntry,
)
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
)
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy import URL, Connection, Engine, column, create_engine, event, func, make_url, select
from sqlalchemy.exc import SQLAlchemyError

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.text import first_line
from kbo_pipeline.operate import insides
from kbo_pipeline.operate.instance import (
    SilentError,
    limit_silence,
    patience,
    server_answers,
)
from kbo_pipeline.operate.processes.postgres import (
    IF_DAMAGED,
    embedded_server_url,
    server_pid,
    sqlalchemy_url,
)
from kbo_pipeline.operate.processes.queue_view import drop_queue, ensure_queue
from kbo_pipeline.operate.runs.partitions import remove_checks_of_run, wipe_partitions

if TYPE_CHECKING:
    from dagster._config.config_schema import UserConfigSchema
    from dagster._serdes import ConfigurableClassData

POSTGRES_ERRORS = (SQLAlchemyError, DagsterPostgresException)
"""What Dagster's code raises when PostgreSQL is away, or refuses something."""

_PATIENCE = 90.0  # seconds for a server that was there before: it is being restarted
_FIRST_PATIENCE = 6.0  # seconds for one that was not there yet, and may be starting
_PAUSE = 0.5
_EVENTS_AT_ONCE = 1000  # events of one kind that Dagster hands over together
_TABLES_LOCK = int.from_bytes(b"kbo", "big")

_TRANSIENT = (
    "Connection refused",
    "No such file or directory",
    "starting up",
    "shutting down",
    "in recovery mode",
    "too many clients",
    "too many connections",
    "connection slots are reserved",
)
"""Errors of a server that may answer a moment later; libpq gives a text alone, and no code."""


class KboPostgresStorage(DagsterPostgresStorage):
    """Storage in PostgreSQL: at `DAGSTER_POSTGRES_URL`, or else in the embedded server.

    It has no configuration, which Dagster would hand to run workers and code servers on their
    command lines; each finds the address in its own environment instead.
    """

    def __init__(
        self,
        engine: Engine,
        inst_data: "ConfigurableClassData | None" = None,
        *,
        embedded: Path | None = None,
    ) -> None:
        """Creates Dagster's tables, and the view on them, where they are missing.

        Raises:
            StorageError: the server does not answer, or does not let us in.
        """
        url = engine.url
        try:
            with engine.connect() as connection:
                connection = connection.execution_options(isolation_level="READ COMMITTED")
                with connection.begin():
                    # Of four processes at a new database one fails without it (dagster 1.13.27).
                    connection.execute(select(func.pg_advisory_xact_lock(_TABLES_LOCK)))
                    super().__init__(url.render_as_string(hide_password=False), inst_data=inst_data)
                    ensure_queue(connection, embedded=embedded is not None)
        except POSTGRES_ERRORS as error:
            raise explained(error, url, embedded) from error
        is_tested = insides.are_tested()
        of_runs = _QuickRunStorage if is_tested else _RunStorage
        of_events = _QuickEventLogStorage if is_tested else _EventLogStorage
        self._runs = of_runs(self.postgres_url, should_autocreate_tables=False)
        self._events = of_events(self.postgres_url, should_autocreate_tables=False)
        if is_tested:
            # What DagsterInstance.optimize_for_webserver does to these three, in every process:
            # an event costs two or three connections, and opening one takes longer than using it.
            stores: tuple[Any, ...] = (self._runs, self._events, self.schedule_storage)
            for storage in stores:
                storage._engine = engine

    @property
    def run_storage(self) -> PostgresRunStorage:
        """Where runs are."""
        return self._runs

    @property
    def event_log_storage(self) -> PostgresEventLogStorage:
        """Where events are."""
        return self._events

    @classmethod
    def config_type(cls) -> "UserConfigSchema":
        """Returns the configuration that `dagster.yaml` may give: none."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: "ConfigurableClassData | None", config_value: Mapping[str, Any]
    ) -> "KboPostgresStorage":
        """Returns the storage that the environment names."""
        settings = load_settings()
        if insides.are_tested():
            os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(_EVENTS_AT_ONCE))
        else:
            os.environ["PGTZ"] = "UTC"  # as in `_engine`
        if settings.postgres_url is None:
            embedded, url = settings.postgres_dir, embedded_server_url(settings.postgres_dir)
        else:
            embedded, url = None, sqlalchemy_url(settings.postgres_url)
        return cls(_engine(url, embedded), inst_data=inst_data, embedded=embedded)


def migrate(instance: DagsterInstance, report: Callable[[str], None]) -> None:
    """Migrates Dagster's tables when they are of an older version, with a line for `report` before.

    No other process may use them meanwhile.
    """
    of_tables, of_program = instance.run_storage.alembic_version() or (None, None)
    if of_tables != of_program:
        report("Dagster's tables in PostgreSQL are of an older version: migrating them")
        with patience(None):  # whole tables are rewritten
            instance.upgrade()


def explained(error: Exception, url: URL, embedded: Path | None) -> StorageError:
    """An error of SQLAlchemy or of Dagster's storage, in one line with the next step.

    Args:
        error: the error.
        url: the address of the server.
        embedded: the directory of the embedded server; None for one of the user's own.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = first_line(cause)
    if embedded is None:
        helps = "check DAGSTER_POSTGRES_URL and that the server runs"
    elif isinstance(cause, SilentError) and server_answers(url.render_as_string(False)):
        helps = "another process holds what was asked for; run the command again, see kbo doctor"
    elif isinstance(cause, SilentError):
        helps = f"its process {server_pid(embedded)} stands still: end it, and it is started again"
    else:
        helps = f"see {embedded / 'log'}; {IF_DAMAGED}"
    where = f"PostgreSQL at {url.host or url.query.get('host')}, database {url.database}"
    return StorageError(f"{where}: {reason}; {helps}")


class _RunStorage(PostgresRunStorage):
    """The first storage that `dagster instance migrate` comes to."""

    def upgrade(self) -> None:
        """Drops the view, whose columns PostgreSQL would not alter; the next start makes it."""
        with self.connect() as connection:
            drop_queue(connection)
        super().upgrade()


class _QuickRunStorage(_RunStorage):
    _has_run_stats = False

    def has_run_stats_index_cols(self) -> bool:
        """Tells what does not change any more; Dagster's own asks it with each query of runs."""
        self._has_run_stats = self._has_run_stats or super().has_run_stats_index_cols()
        return self._has_run_stats


class _EventLogStorage(PostgresEventLogStorage):
    """Also forgets single partitions of an asset, which Dagster's own cannot (1.13.27)."""

    def wipe_asset_partitions(self, asset_key: AssetKey, partition_keys: Sequence[str]) -> None:
        """Removes all that makes partitions of an asset materialized, failed or in progress."""
        with self.index_transaction() as connection:
            wipe_partitions(connection, asset_key.to_string(), list(partition_keys))


class _QuickEventLogStorage(_EventLogStorage):
    """Also stores events of several assets together, which Dagster's own cannot (1.13.27)."""

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Stores events that come together, those of assets in one statement: all of them or none.

        Dagster's own takes the last event for that of all assets; events of runs that begin, one
        for each asset and partition, it stores one by one.
        """
        if not all(event.get_dagster_event().event_type in _TOGETHER for event in events):
            super().store_event_batch(events)
            return
        insert = self.prepare_insert_event_batch(events).returning(column("id"))
        with self._connect() as connection:  # at once: who reads on from an id must not miss one
            ids = [row[0] for row in connection.execute(insert).fetchall()]
        with self.index_transaction() as connection:
            self._store_asset_event_tags(connection, events, ids)
            newest = {
                str(event.get_dagster_event().asset_key): (event, event_id)
                for event, event_id in zip(events, ids, strict=True)
            }
            for _, (event, event_id) in sorted(newest.items()):  # always in the same order
                self._store_asset_event(connection, event, event_id)

    def delete_events_for_run(self, conn: Connection, run_id: str) -> None:
        """Removes what Dagster's own removes, and the results of asset checks, which it keeps."""
        super().delete_events_for_run(conn, run_id)
        remove_checks_of_run(conn, run_id)


_TOGETHER = (
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
)


def _is_transient(error: Exception) -> bool:
    """Whether a server that has not been there yet may be there a moment later."""
    return not isinstance(error, StorageError) and any(text in str(error) for text in _TRANSIENT)


@functools.cache
def _engine(url: str, embedded: Path | None) -> Engine:
    """Returns the process's one engine for this URL.

    One, because a code server makes a DagsterInstance at every tick, and its connections would
    outlive it. Two connections stay open, more come and go; each is tested before it is used, as a
    restart of the server or a router in between may have cut it.
    """
    limit_silence()
    engine = create_engine(
        make_url(url),
        isolation_level="AUTOCOMMIT",
        pool_size=2,
        max_overflow=-1,  # a thread may hold two: with a limit, threads could wait for each other
        pool_pre_ping=True,
        pool_recycle=300,
    )
    was_there = False

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _: object, arguments: Any, options: Any) -> Any:
        nonlocal was_there
        deadline = time.monotonic() + (_PATIENCE if was_there else _FIRST_PATIENCE)
        while True:
            try:
                if embedded is not None:
                    embedded_server_url(embedded)
                connection = dialect.connect(*arguments, **options)
            except (StorageError, psycopg2.OperationalError) as error:
                if not was_there and not _is_transient(error):
                    raise
                if time.monotonic() > deadline or isinstance(error, SilentError):
                    raise DagsterPostgresException(f"PostgreSQL is away: {error}") from error
                time.sleep(_PAUSE)
            else:
                was_there = True
                return connection

    @event.listens_for(engine, "connect")
    def in_utc(connection: Any, _: object) -> None:
        # Dagster writes instants with a zone into columns without one: PostgreSQL converts them to
        # the session's zone, and Dagster reads them as UTC (dagster 1.13.27).
        if connection.info.parameter_status("TimeZone") != "UTC":
            with connection.cursor() as cursor:
                cursor.execute("SET TIME ZONE 'UTC'")

    # A forked child must not talk on its parent's connections, nor close them.
    os.register_at_fork(after_in_child=lambda: engine.dispose(close=False))
    return engine


def reported(
    context: AssetExecutionContext, events: Sequence[AssetMaterialization]
) -> Iterator[DagsterEvent | AssetMaterialization]:
    """Reports events together: our storage has all of them then, or none.

    One by one they take half as much processor time again as applying small batches does.
    """
    if not insides.are_tested():
        yield from events
        return
    from dagster._core.events import DagsterEventBatchMetadata

    step, together = context.get_step_execution_context(), str(uuid.uuid4())
    for place, asset in enumerate(events, start=1):
        metadata = DagsterEventBatchMetadata(together, place == len(events))
        yield DagsterEvent.asset_materialization(step, asset, metadata)
