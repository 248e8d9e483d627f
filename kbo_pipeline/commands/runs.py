"""Imports extracts in this process, through the jobs that the sensors start too."""

import getpass
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
from dagster import AssetKey, DagsterInstance, DagsterRunStatus

from kbo_pipeline.core import signals
from kbo_pipeline.core.errors import ImportFailedError, NotReadyError
from kbo_pipeline.core.extracts import Extract, ExtractKey, check_order
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.fetch.zips import full_to_compare, refused_zip
from kbo_pipeline.operate.instance import OF_WORK, patience
from kbo_pipeline.operate.runs.claims import OWN_RUN, WRITER_POOL, WRITER_WAIT, claim
from kbo_pipeline.operate.runs.partitions import forget_extract, register_extract
from kbo_pipeline.operate.runs.progress import (
    ACCEPT_FAULTS_TAG,
    ACCEPT_LOSS_TAG,
    EXTRACT_TAG,
    PUBLISH_JOB,
    RANGE_END_TAG,
    RANGE_START_TAG,
    REPAIR_TAG,
    REPORTED,
    ROLLBACK_JOB,
    VERIFY_JOB,
    Progress,
)
from kbo_pipeline.operate.runs.recovery import contiguous, due_runs, end_dead_runs_of_commands
from kbo_pipeline.operate.runs.status import failure_message
from kbo_pipeline.publish.correction import check_repair, repair_status
from kbo_pipeline.publish.publish import check_rollback
from kbo_pipeline.read.published import Proof, published_state_of, read_proofs
from kbo_pipeline.read.report import remove_report
from kbo_pipeline.stage.staged import is_staged

_logger = logging.getLogger("kbo_pipeline")

_NO_RETRY = {"dagster/max_retries": "0"}
"""The daemon must not retry what a person sees fail, or stops."""


def import_extract(
    instance: DagsterInstance, settings: Settings, zip_file: Path, extract: Extract
) -> bool:
    """Stages, applies and publishes a ZIP; False when it was published before.

    Raises:
        OrderError: it does not follow what is published.
        NotReadyError: the ZIP has moved away.
        StorageError: another process is importing it.
        ImportFailedError: a run failed; names the run's error and the next step.
    """
    key = extract.key
    with claim(settings, key):
        state = published_state_of(settings.database)
        if state.has(extract):
            return False
        check_order(key, state.newest)
        if not zip_file.is_file():  # the claim on the extract keeps it from now on
            raise NotReadyError(
                f"{key}: {zip_file} has moved away meanwhile; if it lay in the inbox, kbo start"
                f" imports it: see kbo status {key}"
            )
        register_extract(instance, key)
        end_dead_runs_of_commands(instance, settings, key)
        source = {"ops": {"extract_zip": {"config": {"source_file": str(zip_file.absolute())}}}}
        run_job(instance, "stage_extract", key, partition_key=str(key), run_config=source)
        finish_extract(instance, key, {})
        return True


def retry_extract(
    instance: DagsterInstance,
    settings: Settings,
    key: ExtractKey,
    *,
    accept_faults: bool = False,
    accept_loss: bool = False,
) -> list[str]:
    """Runs what failed or is missing of an extract, and nothing else; returns what was run.

    Faults accepted are set aside, however many; a loss accepted may be of any size. The run records
    the user.

    Raises:
        ImportFailedError: a run failed again.
        NotReadyError: nothing is known of the extract.
        StorageError: another process is importing it.
    """
    due_runs(instance, settings, key)  # what is unknown is refused before anybody waits
    with claim(settings, key):
        _forget_undone(instance, settings, key)
        due = due_runs(instance, settings, key)
        if not due:
            return []
        end_dead_runs_of_commands(instance, settings, key)
        if REPORTED in due[0].assets:
            run_job(instance, PUBLISH_JOB, key, partition_key=str(key), assets=[REPORTED])
            return ["change report"]
        done: list[str] = []
        if due[0].job == "stage_extract":
            tags = _accepted(ACCEPT_FAULTS_TAG, accept_faults)
            run_job(instance, "stage_extract", key, tags, partition_key=str(key))
            done.append("staging")
        return done + finish_extract(instance, key, _accepted(ACCEPT_LOSS_TAG, accept_loss))


def publish_extract(
    instance: DagsterInstance, settings: Settings, key: ExtractKey, *, accept_loss: bool
) -> bool:
    """Publishes an extract whose batches are all applied; False when it was published before.

    It may remove many rows if the loss is accepted; the run records the user.

    Raises:
        OrderError: it does not follow what is published.
        NotReadyError: it is not staged, or batches are not applied.
        StorageError: another process works on it.
        ImportFailedError: the run failed; names the run's error and the next step.
    """
    with claim(settings, key):
        _forget_undone(instance, settings, key)
        progress = Progress(instance)
        if key in progress.published:
            return False
        is_ready = key in progress.staged and is_staged(settings.staging_dir, key)
        missing = progress.missing_batches(key)
        if missing or not is_ready:  # what is applied has its turn, as the register knows
            state = published_state_of(settings.database)
            if key in dict(state.published):
                return False
            check_order(key, state.newest)
        if not is_ready:
            raise NotReadyError(f"{key}: not staged; kbo import ZIP or kbo retry {key} does it")
        if missing:
            raise NotReadyError(
                f"{key}: {len(missing)} of {len(progress.batches[key])} batches are not applied;"
                f" kbo retry {key} applies them"
            )
        end_dead_runs_of_commands(instance, settings, key)
        _wait_for_writer(instance)
        _publish(instance, key, _accepted(ACCEPT_LOSS_TAG, accept_loss))
        return True


def _accepted(tag: str, is_accepted: bool) -> dict[str, str]:
    """The tag that says who accepts faults or a loss: the user of the command."""
    if not is_accepted:
        return {}
    try:
        return {tag: getpass.getuser()}
    except (KeyError, OSError):  # an account without a name, as in some containers
        return {tag: f"user {os.getuid()}"}


def rollback_extract(instance: DagsterInstance, settings: Settings, key: ExtractKey) -> None:
    """Undoes the newest extract, published or partly applied.

    Raises:
        OrderError: another extract is the newest; names it.
        StorageError: another process works on it.
        ImportFailedError: the run failed; the same command does what is left.
    """
    with claim(settings, key):
        end_dead_runs_of_commands(instance, settings, key)
        # Before the wait: a run that applies this extract holds the writer's pool, and waits for
        # the claim that we hold. If this is refused, it continues.
        with duckdb.connect(":memory:") as connection:
            check_rollback(connection, key, settings.register, lock_timeout=WRITER_WAIT)
        _wait_for_writer(instance)
        register_extract(instance, key)
        run_job(instance, ROLLBACK_JOB, key, partition_key=str(key), again="rollback")


def repair_extract(
    instance: DagsterInstance,
    settings: Settings,
    key: ExtractKey,
    *,
    accept_faults: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Proof:
    """Closes the differences of the newest number by its Full; returns how they compare then.

    A repair that was begun and did not come to its end goes on where it is.

    Args:
        instance: where runs are recorded.
        settings: say where everything is.
        key: an extract of that number.
        accept_faults: any number of faulty rows of the Full is set aside.
        report: takes a line about the download of the Full.

    Raises:
        NotReadyError: no proof says that it differs, or its Full is nowhere to be had.
        OrderError: it is not the newest number.
        StorageError: another process works on it.
        ImportFailedError: a run failed; names the run's error and the next step.
    """
    full = ExtractKey(key.number, "full")
    with ExitStack() as claims, duckdb.connect(":memory:") as connection:
        for other in (ExtractKey(key.number, "update"), full):
            claims.enter_context(claim(settings, other))
            end_dead_runs_of_commands(instance, settings, other)
        status_of = partial(repair_status, connection, settings, full, lock_timeout=WRITER_WAIT)
        status, progress = status_of(), Progress(instance)
        recorded = next((k for k in progress.published if k.number == full.number), None)
        is_done = status is None or (status == "completed" and recorded == full)
        replaced = check_repair(settings, key) if is_done else recorded
        is_ready = full in progress.staged and is_staged(settings.staging_dir, full)
        if is_done or not (is_ready or status == "completed"):
            _stage_to_repair(instance, settings, full, report, accept_faults=accept_faults)
        if replaced is not None:
            _wait_for_writer(instance)
            register_extract(instance, replaced)
            tags = {REPAIR_TAG: str(full)}
            run_job(instance, ROLLBACK_JOB, replaced, tags, str(replaced), again="repair")
        newest = replaced
        if status_of() is not None and full not in Progress(instance).published:
            _finish_repair(instance, full)
            newest = full
        newest = newest or full
        run_job(instance, VERIFY_JOB, newest, partition_key=str(newest), again="repair")
        return read_proofs(settings)[str(newest)]


def _forget_undone(instance: DagsterInstance, settings: Settings, full: ExtractKey) -> None:
    """Lets Dagster forget what a repair has undone, where it was killed before it did so itself."""
    undone = [key for key in Progress(instance).published if key.number == full.number]
    if full.type != "full" or not undone:
        return
    with duckdb.connect(":memory:") as connection:
        status = repair_status(connection, settings, full, lock_timeout=WRITER_WAIT)
    if status not in (None, "completed"):
        for key in undone:
            forget_extract(instance, key, is_staged=key == full)
            remove_report(settings, key)


def _stage_to_repair(
    instance: DagsterInstance,
    settings: Settings,
    full: ExtractKey,
    report: Callable[[str], None],
    *,
    accept_faults: bool,
) -> None:
    """Stages a Full beside the published extract of its number.

    Where its faults are accepted, that is the one that was refused for them.
    """
    tags = {REPAIR_TAG: str(full), **_accepted(ACCEPT_FAULTS_TAG, accept_faults)}
    refused = refused_zip(settings, full) if accept_faults else None
    with ExitStack() as fetched:
        zip_file = refused or fetched.enter_context(full_to_compare(settings, full.number, report))
        register_extract(instance, full)
        source = {"ops": {"extract_zip": {"config": {"source_file": str(zip_file.absolute())}}}}
        run_job(instance, "stage_extract", full, tags, str(full), source, again="repair")


def _finish_repair(instance: DagsterInstance, full: ExtractKey) -> None:
    """Applies and publishes the Full of a repair that is begun."""
    try:
        finish_extract(instance, full, {})
    except ImportFailedError as error:
        raise ImportFailedError(
            f"{error}; kbo repair {full} continues it; if that does not help, kbo rebuild"
            " --from-zips makes the register anew"
        ) from None


def finish_extract(
    instance: DagsterInstance, key: ExtractKey, tags: Mapping[str, str]
) -> list[str]:
    """Applies the missing batches of a staged extract and publishes it in a run with these tags.

    Returns:
        The batches, and `publication`.

    Raises:
        ImportFailedError: a run failed; names the run's error and the next step.
    """
    missing = Progress(instance).missing_batches(key)
    for first, last in contiguous(missing):
        _wait_for_writer(instance)
        run_job(instance, "apply_batches", key, {RANGE_START_TAG: first, RANGE_END_TAG: last})
    _wait_for_writer(instance)
    _publish(instance, key, tags)
    return [*missing, "publication"]


def _publish(instance: DagsterInstance, key: ExtractKey, tags: Mapping[str, str]) -> None:
    """Publishes an extract and makes its report, whose failure is only logged.

    Raises:
        ImportFailedError: readers do not have it.
    """
    try:
        run_job(instance, PUBLISH_JOB, key, tags, partition_key=str(key))
    except ImportFailedError as error:
        if key not in Progress(instance).published:
            raise
        _logger.warning("published, but the change report failed: %s", error)


def _wait_for_writer(instance: DagsterInstance) -> None:
    """Waits while another run writes the register; a run that waits hears no Ctrl-C."""
    while instance.event_log_storage.get_concurrency_info(WRITER_POOL).claimed_slots:
        time.sleep(0.5)


def run_job(
    instance: DagsterInstance,
    job_name: str,
    key: ExtractKey,
    tags: Mapping[str, str] | None = None,
    partition_key: str | None = None,
    run_config: Mapping[str, Any] | None = None,
    again: str = "retry",
    assets: Sequence[AssetKey] | None = None,
) -> None:
    """Runs a job in this process, recorded like any other run; Ctrl-C ends it as canceled.

    Args:
        instance: where it is recorded.
        job_name: the job.
        key: the extract that it is about.
        tags: more tags for the run.
        partition_key: the partition, of a job on single partitions.
        run_config: configuration of the job.
        again: the command that does it again, for the error.
        assets: those of the job to materialize; None for all.

    Raises:
        ImportFailedError: it failed; names the reason and the next step.
    """
    from kbo_pipeline.definitions import defs

    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    run_id = str(uuid.uuid4())
    try:
        with patience(OF_WORK):
            result = defs.resolve_job_def(job_name).execute_in_process(
                instance=instance,
                partition_key=partition_key,
                tags={EXTRACT_TAG: str(key), **OWN_RUN, **_NO_RETRY, **(tags or {})},
                run_config={**(run_config or {}), **quiet},
                raise_on_error=False,
                run_id=run_id,
                asset_selection=assets,
            )
        if signals.received():
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        signals.ignore_further()
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_success:
            instance.report_run_canceled(run, "stopped by Ctrl-C or a signal")
        raise
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status == DagsterRunStatus.CANCELED:
        raise ImportFailedError(f"{key}: cancelled; kbo retry {key} continues it")
    if not result.success:
        failures = [event for event in result.all_events if event.is_step_failure]
        message = failure_message(failures[-1]) if failures else f"run {result.run_id} failed"
        prefix = "" if message.startswith(str(key)) else f"{key}: "
        # Only one next step: that of our own error is the better one.
        step = "" if "; kbo " in message else f"; fix it, then kbo {again} {key}"
        raise ImportFailedError(f"{prefix}{message}{step}")
