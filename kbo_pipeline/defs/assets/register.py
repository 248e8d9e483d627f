"""The seven register assets: batches of extracts, applied in one run."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby

import dagster as dg
import duckdb
from dagster_duckdb import DuckDBResource
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from kbo_pipeline.apply.differences import Difference
from kbo_pipeline.apply.ledger import BatchChange
from kbo_pipeline.apply.register import TALLY_COLUMNS, Register, Tally, open_register_to_write
from kbo_pipeline.core import signals
from kbo_pipeline.core.database import is_damage, is_transient
from kbo_pipeline.core.errors import KboError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.progress import ProgressReport, part_of
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.core.text import first_line, listed
from kbo_pipeline.defs.metadata import (
    OWNERS,
    PREVIEW_ROWS,
    preview,
    register_metadata,
    shown_table,
    tags,
)
from kbo_pipeline.defs.step import is_canceling, message_of, step_guard, wait_while_paused
from kbo_pipeline.operate.markers import mark_suspect
from kbo_pipeline.operate.processes.storage import reported
from kbo_pipeline.operate.runs.claims import WRITER_POOL, WRITER_WAIT, claimed_for_step, is_own
from kbo_pipeline.operate.runs.live import reporting
from kbo_pipeline.operate.runs.partitions import (
    batch_or_none,
    kbo_batches,
    remove_partition,
    staging_asset,
)
from kbo_pipeline.stage.staged import Staged

COMPARING_SHARE = 0.3
"""What is done of applying an extract when its batches begin."""

BATCH_ATTEMPTS = 5
BATCH_FIRST_WAIT = 2.0  # seconds; doubles each time, with jitter on top

_Event = dg.DagsterEvent | dg.AssetMaterialization | dg.AssetObservation

_Outcomes = Generator[tuple[BatchKey, BatchChange | Exception], None, None]
"""Batches, each with what it did, or why its last attempt failed."""

_NO_BATCH = "{} is no batch; its partition is removed"

lineage_only = dg.SpecificPartitionsPartitionMapping([])
"""Between batches and extracts: the arrow in the UI, and no partition that depends on another.

Which batches belong to an extract is in their keys, which no mapping of Dagster's can read. With
`AllPartitionMapping` each batch depends on all extracts, and Dagster calls it out of sync as soon
as another one is staged.
"""


@dg.multi_asset(
    name="apply_to_register",
    specs=[
        dg.AssetSpec(
            table.name,
            deps=[dg.AssetDep(staging_asset(table), partition_mapping=lineage_only)],
            partitions_def=kbo_batches,
            group_name="register",
            kinds={"duckdb"},
            owners=OWNERS,
            tags=tags("apply", table),
            skippable=True,  # events are yielded batch by batch, never for the whole range
            description=f"{table.description}\n\nEach row version records the extract from which it"
            " is valid and the one from which it no longer is. A partition is materialized when its"
            " batch is committed. The seven tables of a batch change together.",
            metadata=register_metadata(table, staging_asset(table)),
        )
        for table in TABLES
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
    pool=WRITER_POOL,
)
def apply_to_register(
    context: dg.AssetExecutionContext, duckdb: DuckDBResource
) -> Iterator[_Event]:
    """Applies batches, each once and in one transaction; a failed one does not stop the rest."""
    failures: dict[str, str] = {}
    with step_guard(context) as settings:
        names = context.partition_keys
        keys = sorted(key for name in names if (key := batch_or_none(name)) is not None)
        failures |= {name: _NO_BATCH.format(name) for name in names if batch_or_none(name) is None}
        with duckdb.get_connection() as connection:
            for extract, group in groupby(keys, key=lambda key: key.extract):
                batch_keys = list(group)
                try:
                    with (  # in this order, as commands do: or each could wait for the other
                        claimed_for_step(context, settings, extract),
                        open_register_to_write(
                            connection, settings.register, lock_timeout=WRITER_WAIT
                        ) as register,
                    ):
                        yield from _apply_extract(
                            context, settings, register, extract, batch_keys, failures
                        )
                except KboError as error:
                    if is_damage(error):
                        mark_suspect(settings)
                    context.log.error(str(error))
                    failures.update({str(key): str(error) for key in batch_keys})
        for name, message in failures.items():
            if message == _NO_BATCH.format(name):
                remove_partition(context.instance, kbo_batches, name)
    if failures:
        first, message = next(iter(failures.items()))
        which = f"{listed(failures, 3)}; the first one" if len(failures) > 1 else first
        raise dg.Failure(
            description=f"{len(failures)} of {len(names)} batches failed: {which}: {message}",
            metadata={"failed_batches": dg.MetadataValue.json(failures)},
            allow_retries=False,
        )


def _apply_extract(
    context: dg.AssetExecutionContext,
    settings: Settings,
    register: Register,
    extract: ExtractKey,
    keys: Sequence[BatchKey],
    failures: dict[str, str],
) -> Iterator[_Event]:
    """Applies the batches of one extract; notes in `failures` those that failed."""
    if register.ledger.job_status(extract) == "completed":
        context.log.info(f"{extract}: already published: nothing to do")
        for key in keys:
            change = register.ledger.applied_change(extract, key.number)
            if change is None:
                failures[str(key)] = _NO_BATCH.format(key)
            else:
                yield from reported(context, _materializations(key, change, 100.0, {}))
        return
    with (
        reporting(settings, extract, context.run, "applying") as report_progress,
        register.importing(
            settings.staging_dir, extract, part_of(report_progress, 0, COMPARING_SHARE)
        ) as staged,
        _cancel_noted(context, register, extract),
    ):
        numbers = {batch.number for batch in staged.batches}
        for key in keys:
            if key.number not in numbers:
                failures[str(key)] = _NO_BATCH.format(key)
        to_apply = [key for key in keys if key.number in numbers]
        tally = Tally(len(keys))
        report = part_of(report_progress, COMPARING_SHARE, 1)
        with closing(_outcomes(context, settings, register, staged, to_apply, report)) as outcomes:
            for done, (key, result) in enumerate(outcomes, start=1):
                if not isinstance(result, BatchChange):
                    message = first_line(message_of(result))
                    report_progress.failed(str(key), message)
                    if is_damage(result):
                        mark_suspect(settings)
                    tally.add_failed()
                    context.log.error(f"{key}, {tally.place}: failed: {message}")
                    failures[str(key)] = message
                    yield from _observations(key, staged, tally.place, message)
                    continue
                tally.add(result)
                more = _last_metadata(register, extract, tally) if done == len(to_apply) else {}
                yield from reported(context, _materializations(key, result, tally.percent, more))
                context.log.info(tally.line(key, result, report_progress.seconds_left))


def _outcomes(
    context: dg.AssetExecutionContext,
    settings: Settings,
    register: Register,
    staged: Staged,
    keys: Sequence[BatchKey],
    report: ProgressReport,
) -> _Outcomes:
    """Applies batches one after the other; yields what became of each."""
    total = len(staged.batches)
    missing = register.ledger.missing_batches(staged.extract.key)
    for done, key in enumerate(keys):
        place = place_of(key.number, total, done + 1, len(keys))
        words = place + _shown_change(register.differences_in(key.number))
        report(min(1.0, (total - missing + done) / total), words)
        wait_while_paused(context, settings)
        try:
            change, is_stopped = _apply_with_retries(context, register, staged, key)
        except (KboError, duckdb.Error, OSError) as error:
            yield key, error
            continue
        yield key, change
        if is_stopped:
            raise dg.DagsterExecutionInterruptedError


def place_of(number: int, total: int, position: int, in_run: int) -> str:
    """Which batch is at work: of how many, or where it is in a run that applies some of them."""
    if in_run == total:
        return f"batch {number} of {total}"
    return f"batch {number}, {position} of {in_run} in this run"


def _shown_change(differences: Mapping[str, Difference]) -> str:
    """What a batch is about to do most of, such as `: closing 957 rows of address`."""
    table, most = max(
        differences.items(), key=lambda item: item[1].to_close + item[1].to_open, default=("", None)
    )
    if most is None or not most.to_close + most.to_open:
        return ""
    counts = [("closing", most.to_close), ("opening", most.to_open)]
    done = " and ".join(f"{verb} {count:,}" for verb, count in counts if count)
    return f": {done} rows of {table}"


@contextmanager
def _cancel_noted(
    context: dg.AssetExecutionContext, register: Register, extract: ExtractKey
) -> Iterator[None]:
    """Notes in the ledger that somebody has cancelled the import, when that ends the block."""
    try:
        yield
    except BaseException:
        if is_canceling(context):
            register.ledger.cancel_job(extract)
        raise


def _apply_with_retries(
    context: dg.AssetExecutionContext, register: Register, staged: Staged, key: BatchKey
) -> tuple[BatchChange, bool]:
    """Applies a batch; transient errors get further attempts. The ledger notes a failure.

    Ctrl-C lets an attempt finish within the patience for signals; the second value says that it
    came. A worker of the daemon gets none here: it is interrupted only after that patience.
    """
    patience = signals.PATIENCE if is_own(context.run) else 0.0
    batch = next(batch for batch in staged.batches if batch.number == key.number)
    number = 0

    def attempt() -> tuple[BatchChange, bool]:
        nonlocal number
        number += 1
        with signals.postponed(patience) as came:
            try:
                change = register.apply(staged, batch, attempt=number)
            except Exception as error:  # DuckDB wraps what a signal raises as it likes
                if came():
                    raise dg.DagsterExecutionInterruptedError from error
                raise
        return change, came()

    def log_failure(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        context.log.warning(f"{key}: attempt {state.attempt_number} failed: {error}")

    attempts = Retrying(
        stop=stop_after_attempt(BATCH_ATTEMPTS),
        wait=wait_exponential(multiplier=BATCH_FIRST_WAIT) + wait_random(0, BATCH_FIRST_WAIT / 2),
        retry=retry_if_exception(lambda e: isinstance(e, Exception) and is_transient(e)),
        before_sleep=log_failure,
        reraise=True,
    )
    try:
        return attempts(attempt)
    except (KboError, duckdb.Error, OSError) as error:
        register.ledger.fail(staged, batch, number, first_line(error))
        raise


def _last_metadata(
    register: Register, extract: ExtractKey, tally: Tally
) -> dict[str, dict[str, dg.MetadataValue]]:
    """What the last batch of a run shows beside its numbers, by table.

    Each table has its count of current rows and some of the extract's; the first one shows what
    the run did to all of them.
    """
    counts = register.row_counts()
    metadata: dict[str, dict[str, dg.MetadataValue]] = {
        table.name: {
            "dagster/row_count": dg.MetadataValue.int(counts[table.name]),
            "preview": preview(register.opened_rows(table, extract, PREVIEW_ROWS)),
        }
        for table in TABLES
    }
    metadata[TABLES[0].name]["progress"] = shown_table(TALLY_COLUMNS, tally.rows())
    return metadata


def _materializations(
    key: BatchKey,
    change: BatchChange,
    percent: float,
    more: Mapping[str, Mapping[str, dg.MetadataValue]],
) -> list[dg.AssetMaterialization]:
    """The seven events of a batch, kept small: a run has up to 448.

    Args:
        key: the batch.
        change: what it did.
        percent: share of the run's batches that is applied, 0 to 100.
        more: what else is shown, by table.
    """
    return [
        dg.AssetMaterialization(
            name,
            partition=str(key),
            metadata={
                "percent": percent,
                "records": table.records,
                "rows_changed": table.rows_closed + table.rows_opened,
                "seconds": round(table.seconds, 3),
                **more.get(name, {}),
            },
        )
        for name, table in change.tables.items()
    ]


def _observations(
    key: BatchKey, staged: Staged, place: str, error: str
) -> Iterator[dg.AssetObservation]:
    """Why a batch has failed, for its partition of each table."""
    batch = next(batch for batch in staged.batches if batch.number == key.number)
    for table in TABLES:
        of_table = (
            staged.records.get((table.name, batch.number, operation), 0)
            for operation in key.extract.operations
        )
        yield dg.AssetObservation(
            table.name,
            partition=str(key),
            description=f"Batch failed: {error}",
            metadata={
                "error": error,
                "batch": place,
                "records": sum(of_table),
                "first_number": batch.first_number or "the lowest",
                "next_number": batch.next_number or "none",
                "what_helps": f"fix the cause, then kbo retry {key.extract}, or Materialize here",
            },
        )
