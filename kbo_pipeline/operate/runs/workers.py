"""Which runs have a living worker: each worker holds a lock from its first step to its end."""

import json
import time
from pathlib import Path
from typing import Any

import dagster as dg

from kbo_pipeline.core.files import hold_until_exit, is_locked
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.runs.claims import OWN_RUN
from kbo_pipeline.operate.runtime import is_ours
from kbo_pipeline.operate.undocumented import has_run

LAUNCH_SECONDS = 10.0
"""From the moment at which a daemon says that it launches a run until the code server has it."""

_SERVER_TAG = ".dagster/grpc_info"

_held: set[str] = set()


def hold_run(settings: Settings, run: dg.DagsterRun) -> None:
    """Says that this process is the worker of a run, until it ends, however it ends.

    The runs that a `kbo` command runs itself are known by the claim that it holds.
    """
    if run.run_id not in _held and OWN_RUN.keys().isdisjoint(run.tags):
        hold_until_exit(_lock(settings, run.run_id))
        _held.add(run.run_id)


def is_dead(
    instance: dg.DagsterInstance, settings: Settings, run: dg.DagsterRun, *, ended_at: float = 0.0
) -> bool:
    """Tells whether the worker of an unfinished run has certainly ended.

    A run without a lock is one that has not come to its first step, or one on another machine. The
    code server watches the former itself, so that it is dead when the code server is; and one that
    the code server does not have was never begun: the daemon died while it launched it. Where the
    daemon has a clock of its own, only the latter counts. Runs of another launcher, such as
    Kubernetes', are watched by Dagster.

    Args:
        instance: where the runs are recorded.
        settings: say where the locks are.
        run: the run.
        ended_at: seconds of the epoch; no worker that `kbo start` launched before lives.
    """
    lock = _lock(settings, run.run_id)
    if lock.exists():
        return not is_locked(lock)
    if not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return False
    server = json.loads(run.tags.get(_SERVER_TAG, "{}"))
    if not _is_launched_by_start(settings, run, server):
        return False
    launched_at = instance.get_run_stats(run.run_id).launch_time
    if launched_at is None:
        return False
    if launched_at < ended_at and settings.code_host is None:
        return True
    is_launched = launched_at < time.time() - LAUNCH_SECONDS
    return is_launched and not (server and has_run(server, run.run_id))


def drop_locks(instance: dg.DagsterInstance, settings: Settings) -> None:
    """Removes the locks of workers that have ended, with their runs.

    Also one without its name yet, of a worker that died while it took it.
    """
    for lock in (settings.work_dir / "runs").glob("*.*"):
        run = instance.get_run_by_id(lock.stem)
        if (run is None or run.is_finished) and not is_locked(lock):
            lock.unlink(missing_ok=True)


def _lock(settings: Settings, run_id: str) -> Path:
    return settings.work_dir / "runs" / f"{run_id}.lock"


def _is_launched_by_start(settings: Settings, run: dg.DagsterRun, server: dict[str, Any]) -> bool:
    if not server:  # its daemon died in the instant before it wrote the tag
        return run.status == dg.DagsterRunStatus.STARTING
    if settings.code_host is not None:  # whatever the daemon calls this host
        return bool(server.get("port") == settings.code_port)
    return is_ours(settings, Path(server.get("socket") or ""))
