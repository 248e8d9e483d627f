"""Which runs have a living worker: each worker holds a lock from its first step to its end."""

import json
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

from kbo_pipeline.defs.claims import OWN_RUN
from kbo_pipeline.locks import hold_until_exit, is_locked
from kbo_pipeline.serving import runtime_prefix
from kbo_pipeline.settings import Settings

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
    code server watches the former itself, so that it is dead when the code server is.

    Args:
        instance: where the runs are recorded.
        settings: say where the locks are.
        run: the run.
        ended_at: seconds of the epoch; no worker that `kbo start` launched before lives.
    """
    lock = _lock(settings, run.run_id)
    if lock.exists():
        return not is_locked(lock)
    if not _is_launched_by_start(settings, run):
        return False
    launched_at = instance.get_run_stats(run.run_id).launch_time
    return launched_at is not None and launched_at < ended_at


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


def _is_launched_by_start(settings: Settings, run: dg.DagsterRun) -> bool:
    if GRPC_INFO_TAG not in run.tags:  # its daemon died in the instant before it wrote the tag
        return run.status == dg.DagsterRunStatus.STARTING
    server = json.loads(run.tags[GRPC_INFO_TAG])
    return Path(server.get("socket") or "").parent.name.startswith(runtime_prefix(settings))
