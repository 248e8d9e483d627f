"""The seven register assets: batches of extracts, applied one after the other in one run."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from types import MappingProxyType

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

from kbo_pipeline import interrupts
from kbo_pipeline.batches import BatchKey
from kbo_pipeline.defs.catalogue import (
    OWNERS,
    PREVIEW_ROWS,
    preview,
    register_metadata,
    shown_table,
    tags,
)
from kbo_pipeline.defs.claims import OWN_RUN, claimed_for_step
from kbo_pipeline.defs.partitions import kbo_batches
from kbo_pipeline.defs.resources import go_on, is_canceling, permanent_errors_not_retried
from kbo_pipeline.defs.staging import staging_asset
from kbo_pipeline.errors import KboError
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.ledger import BatchChange
from kbo_pipeline.register import (
    Register,
    is_transient,
    open_register,
)
from kbo_pipeline.settings import Settings, load_settings
from kbo_pipeline.staging import Staged, is_damage
from kbo_pipeline.tables import TABLES
from kbo_pipeline.tally import TALLY_COLUMNS, Tally
from kbo_pipeline.witness import mark_suspect

WRITER_POOL = "register"
"""The pool of all steps that write the register: one at a time."""

BATCH_ATTEMPTS = 5
BATCH_FIRST_WAIT = 2.0  # seconds; doubles each time, with jitter on top

WRITER_WAIT = 900.0
"""Seconds to wait for the register: its holder may be a process that was held up."""

every_partition = dg.AllPartitionMapping()
"""Lineage only; which batch belongs to which extract is in its key."""


@dg.multi_asset(
    name="apply_to_register",
    specs=[
        dg.AssetSpec(
            table.name,
            deps=[dg.AssetDep(staging_asset(table), partition_mapping=every_partition)],
            partitions_def=kbo_batches,
            group_name="register",
            kinds={"duckdb"},
            owners=OWNERS,
            tags=tags("apply", table),
            skippable=True,  # events are yielded batch by batch, never for the whole range
            description=f"{table.description}\n\nA row version says from which extract on it holds,"
            " and in which it no longer does. A partition is materialized when its batch is"
            " committed. The seven tables of a batch change together.",
            metadata=register_metadata(table, staging_asset(table)),
        )
        for table in TABLES
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
    pool=WRITER_POOL,
)
def apply_to_register(
    context: dg.AssetExecutionContext, duckdb: DuckDBResource
) -> Iterator[dg.AssetMaterialization]:
    """Applies batches: each in one transaction, on past one that fails, nothing twice."""
    failures: dict[str, str] = {}
    with permanent_errors_not_retried(context):
        settings = load_settings()
        keys = [BatchKey.parse(text) for text in context.partition_keys]
        keys.sort(key=lambda key: (key.extract.number, key.extract.type, key.number))
        with duckdb.get_connection() as connection:
            for extract, group in groupby(keys, key=lambda key: key.extract):
                batch_keys = list(group)
                try:
                    with (  # in this order, as commands do: or each could wait for the other
                        claimed_for_step(context, settings, extract),
                        open_register(
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
    if failures:
        raise dg.Failure(
            description=f"{len(failures)} of {len(keys)} batches failed: {_shortened(failures)}",
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
) -> Iterator[dg.AssetMaterialization]:
    """Applies the batches of one extract; notes in `failures` those that failed."""
    if register.ledger.job_status(extract) == "completed":
        context.log.info(f"{extract}: already published: nothing to do")
        for key in keys:
            change = register.ledger.applied_change(extract, key.number)
            if change is None:
                failures[str(key)] = f"{key}: {extract} has no such batch; delete the partition"
            else:
                yield from _materializations(key, change)
        return
    with (
        register.importing(settings.staging_dir, extract) as staged,
        _cancel_noted(context, register, extract),
    ):
        batches = {batch.number: batch for batch in staged.batches}
        tally = Tally(len(keys), time.monotonic())
        for key in keys:
            if key.number not in batches:
                failures[str(key)] = f"{key}: {extract} has no such batch; delete the partition"
                continue
            go_on(context, settings)
            try:
                change, is_stopped = _apply_with_retries(context, register, staged, key)
            except (KboError, duckdb.Error, OSError) as error:
                message = str(error).split("\n", 1)[0]
                if is_damage(error):
                    mark_suspect(settings)
                    message = f"a file of ours is damaged ({message}); kbo rebuild mends it"
                context.log.error(f"{key}: {message}")
                failures[str(key)] = message
                continue
            tally.add(change)
            yield from _materializations(
                key, change, _shown(register, extract, tally, is_last=key is keys[-1])
            )
            context.log.info(tally.line(change, time.monotonic()))
            if is_stopped:
                raise dg.DagsterExecutionInterruptedError


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
    """Applies a batch; errors that may pass get further attempts. The ledger notes a failure.

    An attempt that is told to stop by Ctrl-C may come to its end; the second value tells of that.
    A worker of the daemon is interrupted only after that patience.
    """
    patience = 0.0 if OWN_RUN.keys().isdisjoint(context.run.tags) else interrupts.PATIENCE
    batch = next(batch for batch in staged.batches if batch.number == key.number)

    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        context.log.warning(f"{key}: attempt {state.attempt_number} failed: {error}")

    attempts = Retrying(
        stop=stop_after_attempt(BATCH_ATTEMPTS),
        wait=wait_exponential(multiplier=BATCH_FIRST_WAIT) + wait_random(0, BATCH_FIRST_WAIT / 2),
        retry=retry_if_exception(lambda e: isinstance(e, Exception) and is_transient(e)),
        before_sleep=say,
        reraise=True,
    )
    number = 0
    try:
        for attempt in attempts:
            with attempt:
                number = attempt.retry_state.attempt_number
                with interrupts.postponed(patience) as came:
                    try:
                        change = register.apply(staged, batch, attempt=number)
                    except Exception as error:  # DuckDB wraps what a signal raises as it likes
                        if came():
                            raise dg.DagsterExecutionInterruptedError from error
                        raise
                return change, came()
    except (KboError, duckdb.Error, OSError) as error:
        register.ledger.fail(staged, batch, number, str(error).split("\n", 1)[0])
        raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _shown(
    register: Register, extract: ExtractKey, tally: Tally, *, is_last: bool
) -> dict[str, dict[str, dg.MetadataValue]]:
    """What is shown besides the numbers of a batch, by table: kept small, 64 times an extract.

    The first table tells each time how far all are; the last batch shows some rows of each.
    """
    shown: dict[str, dict[str, dg.MetadataValue]] = {table.name: {} for table in TABLES}
    if is_last:
        for table in TABLES:
            shown[table.name]["preview"] = preview(
                register.opened_rows(table, extract, PREVIEW_ROWS)
            )
    shown[TABLES[0].name]["progress"] = shown_table(TALLY_COLUMNS, tally.rows())
    return shown


def _materializations(
    key: BatchKey,
    change: BatchChange,
    shown: Mapping[str, Mapping[str, dg.MetadataValue]] = MappingProxyType({}),
) -> Iterator[dg.AssetMaterialization]:
    for name, table in change.tables.items():
        yield dg.AssetMaterialization(
            name,
            partition=str(key),
            metadata={
                "records": table.records,
                "rows_closed": table.rows_closed,
                "rows_opened": table.rows_opened,
                "rows_changed": table.rows_closed + table.rows_opened,
                "rows_unchanged": table.rows_unchanged,
                "duplicates_dropped": table.duplicates_dropped,
                "seconds": round(table.seconds, 3),
                "already_applied": change.already_applied,
                **shown.get(name, {}),
            },
        )


def _shortened(failures: dict[str, str]) -> str:
    first = next(iter(failures.items()))
    rest = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
    return f"{first[0]}: {first[1]}{rest}"
