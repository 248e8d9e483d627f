"""What `kbo start` does before anything runs, and each half minute: it sets right what has died."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_postgres.utils import DagsterPostgresException

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import first_line
from kbo_pipeline.operate import insides
from kbo_pipeline.operate.instance import open_instance
from kbo_pipeline.operate.markers import mark_suspect, suspect_file
from kbo_pipeline.operate.processes.storage import POSTGRES_ERRORS, migrate
from kbo_pipeline.operate.repair.repair import next_lost, repair_installation
from kbo_pipeline.operate.runs.cancellation import note_cancelled
from kbo_pipeline.operate.runs.recovery import (
    end_dead_runs,
    end_dead_runs_of_commands,
    resume_retries,
)
from kbo_pipeline.operate.runtime import reached

_ATTEMPTS = 3
_ASK_SECONDS = 5


def has_code_server(settings: Settings, socket: Path) -> bool:
    """Tells whether the code server of this data directory answers within seconds.

    Args:
        settings: say where it listens, if not on a socket.
        socket: its socket.
    """
    if not insides.are_tested():
        return True
    from dagster._grpc.client import DagsterGrpcClient

    if settings.code_host is None:
        where: dict[str, Any] = {"socket": str(socket)}
    else:
        where = {"host": reached(settings.code_host), "port": settings.code_port}
    try:
        DagsterGrpcClient(**where).get_server_id(timeout=_ASK_SECONDS)
    except dg.DagsterError:
        return False
    return True


def watch(
    settings: Settings, report: Callable[[str], None], *, ended_at: float, is_start: bool
) -> ExtractKey | None:
    """Ends dead runs, has retried what Dagster does not retry, compares the files where needed.

    A look in the middle of which PostgreSQL goes is begun again, when that is back.

    Args:
        settings: the settings.
        report: takes a line for the person who watches.
        ended_at: seconds of the epoch; no worker that `kbo start` launched before lives.
        is_start: nothing runs yet.

    Returns:
        An extract that `kbo retry` is to bring to its end now; None when there is none.

    Raises:
        StorageError: PostgreSQL does not answer, or went away again and again.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with open_instance(settings) as instance:
                return _watch(instance, settings, report, ended_at=ended_at, is_start=is_start)
        except POSTGRES_ERRORS as error:
            reason = first_line(error)
            if attempt == _ATTEMPTS or isinstance(error, DagsterPostgresException):
                raise StorageError(
                    f"PostgreSQL went away: {reason}; check that the server runs, then start again"
                ) from error
            report(f"PostgreSQL went away: {reason}; waiting for it")
    raise AssertionError("unreachable: the last attempt returns or raises")


def _watch(
    instance: dg.DagsterInstance,
    settings: Settings,
    report: Callable[[str], None],
    *,
    ended_at: float,
    is_start: bool,
) -> ExtractKey | None:
    if is_start:
        migrate(instance, report)
    if is_start or suspect_file(settings).exists():
        try:
            repair_installation(instance, settings, report)
        except StorageError as error:  # somebody is at work: a look later will do
            mark_suspect(settings)
            report(f"not checked yet: {error}")
    end_dead_runs_of_commands(instance, settings)
    for run_id in end_dead_runs(instance, settings, ended_at=ended_at):
        report(f"run {run_id}: its process has died; Dagster retries it")
    for run_id in resume_retries(instance, settings):
        report(f"run {run_id}: what made it fail has passed; Dagster retries it")
    note_cancelled(instance, settings)
    return next_lost(instance, settings)
