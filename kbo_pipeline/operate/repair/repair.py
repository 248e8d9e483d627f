"""What was lost outside our transactions is noticed and repaired: register, readers, Dagster."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial

import dagster as dg
import duckdb

from kbo_pipeline.apply.register import Register, open_register_to_copy
from kbo_pipeline.core.database import connect
from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.markers import (
    add_lost,
    drop_lost,
    read_lost,
    suspect_file,
)
from kbo_pipeline.operate.repair.rebuild import rebuild_register
from kbo_pipeline.operate.repair.witness import (
    Recorded,
    RepairPlan,
    damaged_staging,
    look,
    newest_known,
    repair_files,
)
from kbo_pipeline.operate.runs.partitions import forget_batches, forget_extract, register_extract
from kbo_pipeline.operate.runs.progress import (
    LEDGER_HASH,
    PUBLISHED,
    Progress,
    extract_of,
    ledger_metadata,
)
from kbo_pipeline.publish.publish import renew_shared_views, renew_views
from kbo_pipeline.read.report import remove_report


def read_recorded(instance: dg.DagsterInstance) -> Recorded:
    """What Dagster's storage says is published and applied."""
    progress = Progress(instance)
    newest = progress.newest_published
    published: dict[ExtractKey, str | None] = dict.fromkeys(progress.published)
    if newest is not None:
        published[newest] = _recorded_hash(instance, newest)
    applied = {
        key: frozenset(
            BatchKey.parse(batch).number
            for batches in progress.applied(key).values()
            for batch in batches
        )
        for key in progress.batches
        if newest is None or key.number > newest.number
    }
    return Recorded(published, {key: numbers for key, numbers in applied.items() if numbers})


def plan_of(instance: dg.DagsterInstance, settings: Settings) -> RepairPlan:
    """Says what would make register, published file and Dagster agree; changes nothing.

    Raises:
        StorageError: another process is at work on the register.
        RegisterError: what is left does not tell what was; names the next step.
    """
    with (
        settings.register.sole_writer(0.0),
        duckdb.connect(":memory:") as connection,
    ):
        return look(connection, settings, read_recorded(instance))


def repair_installation(
    instance: dg.DagsterInstance, settings: Settings, report: Callable[[str], None]
) -> None:
    """Makes register, published file and Dagster agree, when nothing is ambiguous.

    Extracts that have to be imported again, or to an end, are noted in `work/lost`.

    Args:
        instance: where Dagster's records are.
        settings: say where the files are.
        report: takes a line for each thing that is found and repaired.

    Raises:
        StorageError: another process is at work on the register, or the disk refuses; what has to
            come again is noted already.
        RegisterError: what is left does not tell what was; names the next step.
    """
    with (
        duckdb.connect(":memory:") as connection,
        open_register_to_copy(connection, settings.register, lock_timeout=0.0) as attach,
    ):
        plan = look(connection, settings, read_recorded(instance))
        damaged = damaged_staging(settings)
        for line in plan.said:
            report(line)
        for key in damaged:
            report(f"{key}: its staging file is damaged or from another version, and is removed")
        # First: who is killed from here on leaves a note of what has to come again.
        add_lost(settings, _to_retry(instance, plan, damaged))
        try:
            repair_files(settings, plan, attach)
            if _renew_views(settings, attach):
                report(f"{settings.database}: its views were recreated")
        except (OSError, duckdb.IOException) as error:
            raise StorageError(
                f"{error}; fix that or free disk space, then run kbo rebuild"
            ) from error
        _correct_records(instance, plan)
        for key in plan.forget:
            remove_report(settings, key)
        for file in damaged.values():
            file.unlink(missing_ok=True)
    suspect_file(settings).unlink(missing_ok=True)


def _renew_views(
    settings: Settings, attach: Callable[[], AbstractContextManager[Register]]
) -> bool:
    if settings.database.file is not None:
        return renew_views(settings.database.file, settings.privacy)
    with attach() as register:
        return renew_shared_views(register, settings.privacy)


def rebuild_from_zips(
    instance: dg.DagsterInstance, settings: Settings, report: Callable[[str], None]
) -> tuple[ExtractKey, ExtractKey]:
    """Makes the register anew from the kept ZIPs, as far as anything says that it was published.

    Args:
        instance: knows what was published, when no file does.
        settings: say where everything is.
        report: takes a line of progress.

    Returns:
        The first and the last extract that it was made from.

    Raises:
        NotReadyError: a ZIP is missing; names it.
        StorageError: another process is at work on the register.
    """
    newest = newest_known(settings, read_recorded(instance))
    keys = rebuild_register(partial(connect, settings), settings, newest, report)
    return keys[0], keys[-1]


def next_lost(instance: dg.DagsterInstance, settings: Settings) -> ExtractKey | None:
    """The lost extract that is to be retried now; None when there is none, or a run is about it.

    Those that are published meanwhile are lost no more.
    """
    lost = read_lost(settings)
    if not lost:
        return None
    progress = Progress(instance)
    for key in [key for key in lost if key in progress.published or key not in progress.known]:
        drop_lost(settings, key)
    busy = {extract_of(run) for run in progress.unfinished_runs}
    return next((key for key in read_lost(settings) if str(key) not in busy), None)


def _correct_records(instance: dg.DagsterInstance, plan: RepairPlan) -> None:
    for key in plan.forget:
        forget_extract(instance, key)
    for key, numbers in plan.lost_batches.items():
        forget_batches(instance, [str(BatchKey(key, number)) for number in sorted(numbers)])
    for link in plan.adopt:
        register_extract(instance, link.key)
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                PUBLISHED,
                partition=str(link.key),
                description="Recorded from the register, in which it was published before.",
                metadata=ledger_metadata(link),
            )
        )


def _to_retry(
    instance: dg.DagsterInstance, plan: RepairPlan, damaged: Iterable[ExtractKey]
) -> list[ExtractKey]:
    progress = Progress(instance)
    found = {*plan.lost, *plan.lost_batches, *damaged}
    if plan.restore or plan.undo is not None:
        found |= {key for key in (progress.next_to_apply, plan.undo) if key is not None}
    return [key for key in sorted(found) if key in progress.known and key not in progress.cancelled]


def _recorded_hash(instance: dg.DagsterInstance, key: ExtractKey) -> str | None:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(PUBLISHED, asset_partitions=[str(key)]), limit=1
    ).records
    materialization = records[0].asset_materialization if records else None
    value = materialization.metadata.get(LEDGER_HASH) if materialization is not None else None
    return str(value.value) if value is not None else None
