"""What surrounds a step or a tick: settings, DuckDB, stops, pauses, how errors become Dagster's."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core import settings as core_settings
from kbo_pipeline.core import signals
from kbo_pipeline.core.database import is_damage, is_transient, limits
from kbo_pipeline.core.errors import KboError, NotReadyError, SettingsError
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import OUT_OF_MEMORY, OUT_OF_MEMORY_CLASSES, first_line
from kbo_pipeline.defs.metadata import fault_table
from kbo_pipeline.operate.markers import PAUSED, is_paused, mark_suspect
from kbo_pipeline.operate.processes.storage import POSTGRES_ERRORS
from kbo_pipeline.operate.runs.claims import StepContext
from kbo_pipeline.operate.runs.progress import CANCELLED_TAG, extract_of, imports
from kbo_pipeline.operate.runs.recovery import cancel_waiting_runs, hold_run
from kbo_pipeline.operate.runs.status import in_one_line
from kbo_pipeline.stage.faults import RejectedError

_LOOK_SECONDS = 1.0  # between two looks at whether `kbo pause` still holds

_BEHIND_IMPORTS = 10  # how much nicer: beside an import, a tenth of a processor

RETRIES = dg.RetryPolicy(
    max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)
"""For steps that work on our own files; those that ask others wait longer."""


def load_settings() -> Settings:
    """The settings of a sensor's tick, or of the process that loads the code location.

    Dagster shows what is raised there with all its frames; but not an error that stands for one of
    another process.

    Raises:
        DagsterError: a setting is unknown or malformed; one line in the web UI.
    """
    try:
        return core_settings.load_settings()
    except SettingsError as error:
        raise in_one_line(error) from None


AT_IMPORT = load_settings()
"""The settings of the process that loads the code location, for what its definitions depend on.

They are no `ConfigurableResource`: one is filled when the code location loads, and steps and
ticks read `.env` anew; the commands read the same settings without Dagster; and `kbo doctor` shows
what is wrong with them.
"""


def duckdb_resource(settings: Settings) -> dg.ResourceDefinition:
    """An in-memory DuckDB; the core attaches the register and staging files to it.

    It has no run config: what limits it are settings, and a launchpad would begin with them.
    """
    resource = DuckDBResource(database=":memory:", connection_config=limits(settings))
    return dg.ResourceDefinition.hardcoded_resource(
        resource, description="DuckDB in memory, limited by KBO_MEMORY_MB."
    )


@contextmanager
def step_guard(context: StepContext) -> Iterator[Settings]:
    """Yields the settings of a step; its errors become Dagster's.

    Transient errors are left to the retry policy; any other fails the step at once. So does a stop
    in the UI or by Ctrl-C: the retry policy would start the step again. Other interruptions, and
    errors of an unreachable PostgreSQL, reach Dagster as interruptions: it resumes the run later.

    Before the block, this process registers as the run's worker and waits while `kbo pause` holds.
    """
    try:
        settings = core_settings.load_settings()
    except SettingsError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None
    try:
        hold_run(settings, context.run)
        wait_while_paused(context, settings)
        yield settings
    except dg.Failure:
        raise
    except dg.DagsterExecutionInterruptedError:
        if _is_stopped(context):
            raise _stopped(context) from None
        raise
    except POSTGRES_ERRORS as error:
        # As interrupted, and not as failed: failed steps are not retried after a crash.
        raise dg.DagsterExecutionInterruptedError from error
    except Exception as error:  # each goes on: as an interruption, to be retried, or as a failure
        if isinstance(error.__cause__, dg.DagsterExecutionInterruptedError):  # DuckDB wraps it
            if _is_stopped(context):
                raise _stopped(context) from None
            raise error.__cause__ from None
        if is_damage(error):
            mark_suspect(settings)
        if is_transient(error):
            raise
        faults = {"faults": fault_table(error.faults)} if isinstance(error, RejectedError) else {}
        raise dg.Failure(
            description=message_of(error), metadata=faults, allow_retries=False
        ) from error


def give_way() -> None:
    """Lets imports go before the step at work, which only reads: the process gets nicer.

    What it has given up, it cannot take back. So this changes only a process that Dagster has
    started for a run.
    """
    if multiprocessing.parent_process() is not None:
        os.nice(_BEHIND_IMPORTS)


def message_of(error: Exception) -> str:
    """The text of an error; for a damaged file of ours, with the command that repairs it."""
    if is_damage(error) and not isinstance(error, KboError):
        return f"a file of ours is damaged ({first_line(error)}); kbo rebuild repairs it"
    return OUT_OF_MEMORY if type(error).__name__ in OUT_OF_MEMORY_CLASSES else str(error)


def wait_while_paused(context: StepContext, settings: Settings) -> None:
    """Waits while `kbo pause` holds.

    Raises:
        DagsterExecutionInterruptedError: somebody has stopped the run; or it has ended without this
            process, which was taken for dead: another may be at work in its place.
    """
    is_logged = False
    while True:
        run = context.instance.get_run_by_id(context.run.run_id)
        if run is None or run.is_finished or run.status == dg.DagsterRunStatus.CANCELING:
            raise dg.DagsterExecutionInterruptedError
        if not is_paused(settings):
            if is_logged:
                context.log.info("resumed")
            return
        if not is_logged:
            context.log.warning(PAUSED)
            is_logged = True
        time.sleep(_LOOK_SECONDS)


def _stopped(context: StepContext) -> dg.DagsterError:
    """What a step ends with that a person has stopped: one line, without frames."""
    extract = extract_of(context.run)
    again = f"; kbo retry {extract} continues it" if extract and imports(context.run) else ""
    return in_one_line(NotReadyError(f"{extract or 'the run'}: stopped{again}"))


def is_canceling(context: StepContext) -> bool:
    """Tells whether somebody is ending the run, in the UI or by `kbo cancel`."""
    run = context.instance.get_run_by_id(context.run.run_id)
    return run is not None and run.status == dg.DagsterRunStatus.CANCELING


def _is_stopped(context: StepContext) -> bool:
    """Whether a person has stopped the step; cancelling a run that imports cancels its extract."""
    if not is_canceling(context):
        return signals.received()
    context.instance.add_run_tags(context.run.run_id, {CANCELLED_TAG: context.run.run_id})
    extract = extract_of(context.run)
    if extract is not None and imports(context.run):
        cancel_waiting_runs(context.instance, extract)
    return True
