"""`kbo cancel`, and what ending a run in the UI entails: an extract stays as far as it has come."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
import duckdb
import psutil

from kbo_pipeline.apply.register import open_register_to_write
from kbo_pipeline.core.errors import KboError, NotReadyError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import holder
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.signals import PATIENCE
from kbo_pipeline.operate.runs.claims import claim, claim_file, is_own
from kbo_pipeline.operate.runs.progress import (
    CANCELLED_TAG,
    WILL_RETRY_TAG,
    Progress,
    is_retried,
    sensor_states,
)
from kbo_pipeline.operate.runs.recovery import (
    cancel_waiting_runs,
    end_dead_runs_of_commands,
    is_dead,
    unfinished_runs,
)
from kbo_pipeline.read.published import published_state_of

_END_SECONDS = 90.0  # a batch has 15 s, a busy machine needs longer than that to end a process
_LOOK_SECONDS = 0.3
_TICK_SECONDS = 20.0  # from the begin of a sensor's tick until its runs are in the queue


def cancel_extract(instance: dg.DagsterInstance, settings: Settings, key: ExtractKey) -> None:
    """Ends all work on an extract, after the running batch; what is applied stays.

    It continues only by `kbo retry`, `kbo import` or a new run in the UI.

    Raises:
        NotReadyError: nothing is at work on it, nor about to be; or it was published before all had
            ended.
        StorageError: something does not end.
    """
    _check_at_work(instance, settings, key)
    signaled: set[int] = set()
    terminated: set[str] = set()
    asked_at: float | None = None
    marked_at: float | None = None
    deadline = time.monotonic() + _END_SECONDS
    while True:
        pid = holder(claim_file(settings, key))
        if pid is not None and pid not in signaled and _is_command(pid, claim_file(settings, key)):
            asked_at = _ask_command_to_end(instance, key, asked_at)
            if asked_at is None or time.monotonic() - asked_at > PATIENCE:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)  # it ends its run itself
                signaled.add(pid)
        left = _end_runs(instance, settings, key, terminated)
        if left == 0 and pid is None:
            with claim(settings, key):  # sensors leave a claimed extract alone
                end_dead_runs_of_commands(instance, settings, key)
                if _end_runs(instance, settings, key, terminated) == 0:
                    _mark(instance, key)
                    marked_at = marked_at or time.time()
                    if _is_sensor_at_work(instance, marked_at):
                        continue
                    _cancel_job(settings, key)
                    if key in dict(published_state_of(settings.database).published):
                        raise NotReadyError(
                            f"{key}: was published before it could be cancelled; kbo retry {key}"
                            f" makes what is left of its report, kbo rollback {key} undoes it"
                        )
                    return
        if time.monotonic() > deadline:
            raise StorageError(
                f"{key}: still at work {_END_SECONDS:.0f} s after it was told to stop; see its run"
                " in the UI, then kbo cancel again"
            )
        time.sleep(_LOOK_SECONDS)


def _check_at_work(instance: dg.DagsterInstance, settings: Settings, key: ExtractKey) -> None:
    progress = Progress(instance)
    if key not in progress.known:
        raise NotReadyError(f"{key}: no such extract; see kbo status for the one at work")
    if holder(claim_file(settings, key)) is not None or unfinished_runs(instance, key):
        return
    if key in progress.published:
        raise NotReadyError(f"{key}: published: nothing is at work; nothing was done")
    newest = progress.newest_run(key)
    if key in progress.cancelled:
        raise NotReadyError(f"{key}: cancelled already; kbo retry {key} continues it")
    if newest is None or (newest.is_failure and not is_retried(instance, newest)):
        raise NotReadyError(f"{key}: nothing is at work; kbo status {key} says how far it came")


def _end_runs(
    instance: dg.DagsterInstance, settings: Settings, key: ExtractKey, terminated: set[str]
) -> int:
    """Tells each run of the daemon to stop, once; returns how many have not ended yet."""
    cancel_waiting_runs(instance, key)
    left = 0
    for run in unfinished_runs(instance, key):
        if is_own(run):
            continue
        if is_dead(instance, settings, run):
            instance.report_run_canceled(run, "the process of this run has died")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            continue
        left += 1
        if run.run_id not in terminated:
            with suppress(dg.DagsterError):  # a code server that is away: the run hears of it later
                instance.run_launcher.terminate(run.run_id)
            terminated.add(run.run_id)
    return left


def _ask_command_to_end(
    instance: dg.DagsterInstance, key: ExtractKey, asked_at: float | None
) -> float | None:
    """Asks a command that applies batches to end before the next one; returns when it was asked.

    None for any other command.
    """
    for run in unfinished_runs(instance, key):
        if run.job_name == "apply_batches" and is_own(run):
            if run.status == dg.DagsterRunStatus.STARTED:
                instance.report_run_canceling(run)
                return time.monotonic()
            return asked_at
    return None


def _is_command(pid: int, claimed: Path) -> bool:
    """Whether a process is `kbo`; workers and, for an instant, sensors hold claims too.

    The number of a worker in another container may be another process's here, which has not opened
    the file.
    """
    try:
        words = psutil.Process(pid).cmdline()
        opened = {Path(file.path) for file in psutil.Process(pid).open_files()}
    except psutil.Error:
        return False
    if claimed.resolve() not in opened:
        return False
    return "kbo_pipeline.cli" in words or any(Path(word).name == "kbo" for word in words[:2])


def _is_sensor_at_work(instance: dg.DagsterInstance, marked_at: float) -> bool:
    """Whether a sensor may still request a run, because it looked before the mark was there."""
    if time.time() > marked_at + _TICK_SECONDS:  # its daemon was killed
        return False
    for state in sensor_states(instance):
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1):
            if tick.status.value == "STARTED" and -_TICK_SECONDS < tick.timestamp - marked_at < 0:
                time.sleep(_LOOK_SECONDS)
                return True
    return False


def _mark(instance: dg.DagsterInstance, key: ExtractKey) -> None:
    """Marks the newest run as the last one, so that nothing continues by itself."""
    newest = Progress(instance).newest_run(key)
    if newest is not None:
        instance.add_run_tags(
            newest.run_id, {CANCELLED_TAG: newest.run_id, WILL_RETRY_TAG: "false"}
        )


def note_cancelled(instance: dg.DagsterInstance, settings: Settings) -> None:
    """Records in the ledger which extracts are cancelled.

    A run that is ended while it waits in the queue has no worker that could do so. A register that
    is busy or cannot be read is left to the next call.
    """
    for key in Progress(instance).cancelled:
        with suppress(KboError, duckdb.Error), claim(settings, key, patience=0.0):
            if key in Progress(instance).cancelled:  # it was not taken up before we claimed it
                _cancel_job(settings, key, patience=0.0)


def _cancel_job(settings: Settings, key: ExtractKey, patience: float = 60.0) -> None:
    if settings.register.may_exist:
        with (
            duckdb.connect(":memory:") as connection,
            open_register_to_write(
                connection, settings.register, lock_timeout=patience
            ) as register,
        ):
            register.ledger.cancel_job(key)
