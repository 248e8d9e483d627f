"""What has died or was lost is noticed and repaired: runs, register, published file, Dagster.

`kbo start` compares files and records before anything runs; each half minute it ends dead runs
(`operate.runs.recovery`), and compares the files again where something is suspect. `kbo rebuild`
does so by hand, or rebuilds the register from kept ZIPs alone.
"""

import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
from dagster_postgres.utils import DagsterPostgresException

from kbo_pipeline.apply.register import Register, open_register_to_copy, open_register_to_write
from kbo_pipeline.core.database import connect
from kbo_pipeline.core.disk_space import check_space_to_import
from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey, plan_rebuild, zips_in
from kbo_pipeline.core.files import move_into_place
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import first_line
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.fetch.zips import fetch_zip
from kbo_pipeline.operate import insides
from kbo_pipeline.operate.instance import open_instance
from kbo_pipeline.operate.markers import (
    add_lost,
    drop_lost,
    mark_suspect,
    read_lost,
    suspect_file,
)
from kbo_pipeline.operate.processes.storage import POSTGRES_ERRORS, migrate
from kbo_pipeline.operate.repair.witness import (
    Recorded,
    RepairPlan,
    damaged_staging,
    look,
    newest_known,
    repair_files,
)
from kbo_pipeline.operate.runs.cancellation import note_cancelled
from kbo_pipeline.operate.runs.partitions import forget_batches, forget_extract, register_extract
from kbo_pipeline.operate.runs.progress import (
    LEDGER_HASH,
    PUBLISHED,
    Progress,
    extract_of,
    ledger_metadata,
)
from kbo_pipeline.operate.runs.recovery import (
    end_dead_runs,
    end_dead_runs_of_commands,
    resume_retries,
)
from kbo_pipeline.operate.runtime import reached
from kbo_pipeline.publish.copy import (
    renew_shared_views,
    renew_views,
    replace_shared,
    show_to_readers,
)
from kbo_pipeline.publish.publish import complete
from kbo_pipeline.read.report import remove_report
from kbo_pipeline.stage.staging import stage

_ATTEMPTS = 3  # at a look in the middle of which PostgreSQL goes away
_ASK_SECONDS = 5  # for which a code server may take to answer


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

    Extracts that have to be imported again, or to an end, are noted in `work/lost`; `report` takes
    a line for each thing that is found and repaired.

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
        for line in plan.lines:
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
    """Rebuilds the register from the kept ZIPs, as far as anything says that it was published.

    Returns the first and the last extract that it was made from; raises what `rebuild_register`
    raises.
    """
    keys = rebuild_register(settings, newest_known(settings, read_recorded(instance)), report)
    return keys[0], keys[-1]


def next_lost(instance: dg.DagsterInstance, settings: Settings) -> ExtractKey | None:
    """The lost extract to be retried now; None when there is none, or runs are about all of them.

    Those published meanwhile are no longer lost.
    """
    lost = read_lost(settings)
    if not lost:
        return None
    progress = Progress(instance)
    for key in [key for key in lost if key in progress.published or key not in progress.known]:
        drop_lost(settings, key)
    busy = {extract_of(run) for run in progress.unfinished_imports}
    return next((key for key in read_lost(settings) if str(key) not in busy), None)


def _correct_records(instance: dg.DagsterInstance, plan: RepairPlan) -> None:
    for key in plan.forget:
        forget_extract(instance, key)
    for key, numbers in plan.lost_batches.items():
        forget_batches(instance, [str(BatchKey(key, number)) for number in sorted(numbers)])
    for entry in plan.adopt:
        register_extract(instance, entry.key)
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                PUBLISHED,
                partition=str(entry.key),
                description="Recorded from the register, in which it was published before.",
                metadata=ledger_metadata(entry),
            )
        )


def _to_retry(
    instance: dg.DagsterInstance, plan: RepairPlan, damaged: Iterable[ExtractKey]
) -> list[ExtractKey]:
    progress = Progress(instance)
    keys = {*plan.lost, *plan.lost_batches, *damaged}
    if plan.restore or plan.undo is not None:
        keys |= {key for key in (progress.next_to_apply, plan.undo) if key is not None}
    return sorted(key for key in keys if key in progress.known and key not in progress.cancelled)


def _recorded_hash(instance: dg.DagsterInstance, key: ExtractKey) -> str | None:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(PUBLISHED, asset_partitions=[str(key)]), limit=1
    ).records
    materialization = records[0].asset_materialization if records else None
    value = materialization.metadata.get(LEDGER_HASH) if materialization else None
    return None if value is None else str(value.value)


def rebuild_register(
    settings: Settings, newest: ExtractKey | None, report: Callable[[str], None]
) -> list[ExtractKey]:
    """Rebuilds the register from kept ZIPs; readers keep the old one until it is whole.

    Other writers wait meanwhile.

    Args:
        settings: say where everything is.
        newest: the newest published extract; None when nobody knows it.
        report: takes a line of progress.

    Returns:
        The extracts that it was made from, in order.

    Raises:
        NotReadyError: a ZIP is missing; names it.
        ExtractError: a ZIP is not what it says.
        StorageError: another process is at work on the register, or there is no room.
    """
    directory = settings.work_dir / "rebuild"
    with connect(settings) as connection, open_register_to_copy(connection, settings.register):
        shutil.rmtree(directory, ignore_errors=True)  # of one that was killed
        keys = plan_rebuild({key for key, _ in zips_in(settings.downloads_dir)}, newest)
        file = directory / "register.duckdb"
        try:
            for position, key in enumerate(keys, start=1):
                report(f"{key}: {position} of {len(keys)}")
                _import(settings, key, file, report)
            if settings.database.file is not None:
                move_into_place(file, settings.register_file)
                show_to_readers(settings.register_file, settings.database.file, settings.privacy)
            else:
                made, shared = DuckDBFile(file), settings.database
                replace_shared(connection, made, shared, privacy=settings.privacy, report=report)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return keys


def _import(settings: Settings, key: ExtractKey, file: Path, report: Callable[[str], None]) -> None:
    zip_file = fetch_zip(settings, key, report)
    check_space_to_import(settings, key, zip_file)
    staging_dir = file.parent / "staging"
    extract = read_extract(zip_file)
    with connect(settings) as connection:  # however many rows are faulty: it was imported before
        stage(connection, settings, zip_file, extract, staging_dir, max_faulty_rows=None)
    with (
        connect(settings) as connection,
        open_register_to_write(connection, DuckDBFile(file)) as register,
        register.importing(staging_dir, key) as staged,
    ):
        for batch in staged.batches:
            register.apply(staged, batch)
            report(f"{key}: batch {batch.number} of {len(staged.batches)}")
        complete(register, staged, privacy=settings.privacy)
        register.checkpoint()
    shutil.rmtree(staging_dir)


def has_code_server(settings: Settings, socket: Path) -> bool:
    """Tells whether the code server of this data directory answers within seconds.

    It listens on this socket, or else at `KBO_CODE_HOST`.
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
    """Ends dead runs, retries what Dagster does not retry, compares the files where needed.

    If PostgreSQL goes away in the middle, all of it begins again when that is back.

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
        except StorageError as error:  # a process is at work: the next look does it
            mark_suspect(settings)
            report(f"not checked yet: {error}")
    end_dead_runs_of_commands(instance, settings)
    for run_id in end_dead_runs(instance, settings, ended_at=ended_at):
        report(f"run {run_id}: its process has died; Dagster retries it")
    for run_id in resume_retries(instance, settings):
        report(f"run {run_id}: what made it fail has passed; Dagster retries it")
    note_cancelled(instance, settings)
    return next_lost(instance, settings)
