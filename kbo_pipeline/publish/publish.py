"""Publish and roll back: what readers see changes whole, at one instant.

Each is one transaction with the ledger. With the commit, readers of a shared register see it; those
of a file see it with the next copy. The newest published files stay: the one that readers open, and
older ones as `published/<extract key>.duckdb` beside the register at work.

Before readers see an extract, the register is checked. What the extract did not touch was checked
before. So only the entities of which it opened or closed a row are looked at; for the first
extract, and one that changes more than a million rows, everything is.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import duckdb

from kbo_pipeline.apply import sql as register_sql
from kbo_pipeline.apply.ledger import TableChange
from kbo_pipeline.apply.register import Register, open_register_to_copy, open_register_to_write
from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import (
    NOTHING_PUBLISHED,
    CheckFailedError,
    NotReadyError,
    RegisterError,
)
from kbo_pipeline.core.extracts import (
    ExtractKey,
    LedgerEntry,
    PublishedState,
    check_order,
    key_or_none,
)
from kbo_pipeline.core.files import link_or_copy, replace_atomically
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.progress import ProgressReport, not_reported, part_of
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import TABLES, Privacy, Table
from kbo_pipeline.publish import checks_sql
from kbo_pipeline.publish.checks import CHECKS, LOSS, Check, Found, Severity, Subject
from kbo_pipeline.publish.copy import (
    has_many_enterprises,
    has_profiles,
    keep_profiles,
    show,
    show_to_readers,
)
from kbo_pipeline.read import state_sql
from kbo_pipeline.read.published import open_published, published_state_of
from kbo_pipeline.stage.staged import Staged, discard_staged, open_staged, staging_file


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing an extract did.

    Attributes:
        code: the change of the `code` table.
        names_resolved: entities whose primary name was resolved again.
        row_counts: current rows by table name, all eight.
        rows_changed: row versions that the extract closed or opened, by table name, the seven.
        already_published: nothing was done now.
        entry: the extract in the ledger.
    """

    code: TableChange
    names_resolved: int
    row_counts: Mapping[str, int]
    rows_changed: Mapping[str, int]
    already_published: bool
    entry: LedgerEntry


@dataclass(frozen=True, slots=True)
class Rollback:
    """What rolling back an extract did.

    Attributes:
        dropped: row versions that the extract had opened, by table name, all eight.
        reopened: row versions that it had closed and that hold again, by table name.
        already_rolled_back: the ledger had it so before: nothing was done now.
    """

    dropped: Mapping[str, int]
    reopened: Mapping[str, int]
    already_rolled_back: bool


CHANGED_AT_MOST = 1_000_000
"""Rows opened and closed by an extract above which checking everything is quicker."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found.

    Attributes:
        check: the check.
        table: the table; None for the extract as a whole.
        found: what it found.
        severity: of what it found; an accepted loss is a warning.
    """

    check: Check
    table: Table | None
    found: Found
    severity: Severity

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.found.count

    @property
    def blocks(self) -> bool:
        """Whether it stops publication."""
        return not self.passed and self.severity == "error"

    @property
    def is_accepted(self) -> bool:
        """Whether it was accepted, and would stop publication otherwise."""
        return not self.passed and self.severity != self.check.severity

    def __str__(self) -> str:
        name = self.table.name if self.table else "ledger"
        return f"{name}: {self.found.text}"


def check_register(
    connection: duckdb.DuckDBPyConnection,
    key: ExtractKey,
    max_loss_percent: float,
    *,
    is_staged: bool,
    accept_loss: bool = False,
    everything: bool = False,
    only: Collection[tuple[str, str | None]] | None = None,
    report: ProgressReport = not_reported,
) -> list[CheckResult]:
    """Checks the register that is the default database, after its newest extract.

    Args:
        connection: an in-memory DuckDB with the register.
        key: the newest extract, applied whole.
        max_loss_percent: rows of a table that the extract may take away, 0 to 100.
        is_staged: its staging file is attached as `staging`.
        accept_loss: a larger loss is only a warning.
        everything: looks at all rows, not only at those that the extract touches.
        only: names of checks with the names of their tables; None for all.
        report: takes how much is done.

    Raises:
        RegisterError: the ledger does not know the extract.
    """
    database = Database(connection)
    row = database.row("SELECT snapshot_date FROM import_jobs WHERE id = $id", id=str(key))
    if row is None:
        raise RegisterError(f"{key}: not in import_jobs; import it first")
    subject = Subject(database, key, row[0], None, is_staged, max_loss_percent)
    if not everything and _changed_rows(subject) <= CHANGED_AT_MOST:
        subject = replace(subject, touched=_gather_touched(database, key))
    results = []
    for place, check in enumerate(CHECKS):
        report(place / len(CHECKS), f"checking: {check.name}")
        severity: Severity = "warning" if check is LOSS and accept_loss else check.severity
        for table in check.tables:
            if only is None or (check.name, table.name if table else None) in only:
                found = check.look(subject, table)
                results.append(CheckResult(check, table, found, severity))
    return results


def _changed_rows(subject: Subject) -> int:
    """How many rows of the seven tables the newest extract opened and closed."""
    return sum(rows.opened + rows.closed for rows in map(subject.rows, TABLES))


def _gather_touched(database: Database, key: ExtractKey) -> int:
    """Collects the rows of the entities that an extract touches; returns the number of entities."""
    database.execute(checks_sql.create_touched(), number=key.number)
    for table in TABLES:
        database.execute(checks_sql.create_part(table))
    return database.count(f"SELECT count(*) FROM {checks_sql.TOUCHED}")


def check_published(
    connection: duckdb.DuckDBPyConnection,
    database: Place,
    *,
    max_loss_percent: float,
    max_loss_percent_full: float,
    only: Collection[tuple[str, str | None]] | None = None,
) -> tuple[ExtractKey, list[CheckResult]]:
    """Checks all rows that readers see.

    Returns:
        The newest extract in it, and what was found.

    Raises:
        NotReadyError: nothing is published.
    """
    with open_published(connection, database) as state:
        key = state.newest
        if key is None:
            raise NotReadyError(f"{database}: {NOTHING_PUBLISHED}")
        results = check_register(
            connection,
            key,
            max_loss_percent_full if key.type == "full" else max_loss_percent,
            is_staged=False,
            accept_loss=True,  # when it was published, it was accepted
            everything=True,
            only=only,
        )
    return key, results


def stop_on_errors(key: ExtractKey, results: Sequence[CheckResult]) -> None:
    """Makes sure that an extract may be published.

    Raises:
        CheckFailedError: it may not; names the first error, how many more there are, the next step.
    """
    blocking = [result for result in results if result.blocks]
    if not blocking:
        return
    more = f" (and {len(blocking) - 1} more)" if len(blocking) > 1 else ""
    undo = f"kbo rollback {key} undoes it"
    if all(result.check is LOSS for result in blocking):
        undo = f"kbo publish {key} --accept-loss publishes it, or {undo}"
    raise CheckFailedError(f"{key}: not published: {blocking[0]}{more}; {undo}")


# What is done of a publication after each step, as measured.
_COMPLETED, _CHECKED, _WRITTEN, _SHOWN = 0.25, 0.75, 0.8, 0.95


def publish(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    key: ExtractKey,
    *,
    accept_loss: bool = False,
    report_checks: Callable[[Sequence[CheckResult]], None] = lambda results: None,
    report_progress: ProgressReport = not_reported,
) -> Publication:
    """Publishes an extract whose batches are all applied; once, however often it is called.

    A file that readers open is replaced at one instant; a shared register changes in one
    transaction. Staging files of this extract and of those before it are removed at the end, and a
    proof of its number that was made before.

    Args:
        connection: an in-memory DuckDB.
        settings: say where everything is, who is in the views, and what a table may lose.
        key: the extract.
        accept_loss: a table may lose more.
        report_checks: takes what the checks found, before anything is decided.
        report_progress: takes how much is done.

    Raises:
        NotReadyError: it is not staged, or batches are missing.
        OrderError: it does not follow what is published.
        CheckFailedError: readers must not see it; its batches stay applied, the ledger says why.
    """
    max_loss = settings.max_loss_percent_full if key.type == "full" else settings.max_loss_percent
    report = part_of(report_progress, _COMPLETED, _CHECKED)
    check = partial(check_register, connection, key, max_loss, report=report)

    def check_staged() -> None:
        results = check(is_staged=True, accept_loss=accept_loss)
        report_checks(results)
        stop_on_errors(key, results)

    report_progress(0.0, "completing the extract: codes and names")
    with open_register_to_copy(connection, settings.register) as attach:
        with attach() as opened:
            ledger = opened.ledger
            publication = completed(opened, key)
            if publication is None:
                with open_staged(connection, settings.staging_dir, key) as staged:
                    try:
                        publication = complete(opened, staged, check_staged, settings.privacy)
                    except CheckFailedError as error:
                        ledger.fail_job(key, str(error))
                        raise
            elif (ledger.published(), ledger.half_applied()) == (key, None):
                opened.migrate()
                report_checks(check(is_staged=False, accept_loss=True))  # nothing stops it now
            report_progress(_CHECKED, "writing the register")
            opened.checkpoint()
            at_work, half_applied = ledger.published_state(), ledger.half_applied()
            has_many = has_many_enterprises(opened)
        report_copy = part_of(report_progress, _WRITTEN, _SHOWN)
        _show(connection, settings, key, at_work, half_applied, report_copy)
        if has_many:
            _show_profiles(attach, settings, part_of(report_progress, _SHOWN, 1))
    if at_work.newest == key and at_work.published_at is not None:
        _remove_proof(settings, key, at_work.published_at.timestamp())
    discard_staged(settings.staging_dir, at_work.published[0][0].number)
    return publication


def rollback(
    connection: duckdb.DuckDBPyConnection, settings: Settings, key: ExtractKey
) -> Rollback:
    """Undoes the newest extract, published or half applied; readers see the state before it.

    Calling it again after a crash does what is left. When nothing is published any more, readers
    get an empty register. The staging file of the extract and its proof are removed at the end.

    Raises:
        OrderError: another extract is the newest; names it.
    """
    with open_register_to_copy(connection, settings.register) as attach:
        with attach() as opened:
            done = roll_back(opened, key, settings.privacy)
            opened.checkpoint()
            at_work, half_applied = opened.ledger.published_state(), opened.ledger.half_applied()
            has_many = has_many_enterprises(opened)
        _show(connection, settings, key, at_work, half_applied)
        if has_many:
            _show_profiles(attach, settings)
    staged = (staging_file(settings.staging_dir, key), settings.staging_dir / f"{key}.lock")
    for file in staged:
        file.unlink(missing_ok=True)
    _remove_proof(settings, key)
    return done


def _remove_proof(settings: Settings, key: ExtractKey, before: float = math.inf) -> None:
    """Removes the proof of an extract, if it is of before a moment, in seconds of the epoch."""
    for file in settings.proofs_dir.glob(f"{key.number:04d}.json*"):
        if file.stat().st_mtime < before:
            file.unlink(missing_ok=True)


def check_rollback(
    connection: duckdb.DuckDBPyConnection,
    key: ExtractKey,
    register: Place,
    *,
    lock_timeout: float = 60.0,
) -> None:
    """Makes sure that an extract may be rolled back; changes nothing.

    Takes what `open_register_to_write` takes.

    Raises:
        OrderError: another extract is the newest; names it.
        StorageError: another process keeps the register.
    """
    with open_register_to_write(connection, register, lock_timeout=lock_timeout) as opened:
        opened.ledger.check_rollback(key)


def _show(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    key: ExtractKey,
    at_work: PublishedState,
    half_applied: ExtractKey | None,
    report: ProgressReport = not_reported,
) -> None:
    """Publishes the register at work, which must be detached, where readers open a file."""
    register, database = settings.register.file, settings.database.file
    keep = settings.keep_published - 1
    if register is None or database is None:
        return  # readers of a shared register see it already
    directory = register.with_name("published")
    before = published_state_of(settings.database, connection)
    if at_work != before:
        if half_applied is not None:
            raise NotReadyError(f"{key}: {half_applied} is half applied; finish it first")
        older = [published for published, _ in at_work.published[1:]]
        if keep > 0 and before.newest in older:
            with replace_atomically(directory / f"{before.newest}.duckdb") as temporary:
                link_or_copy(database, temporary)
        # Before the copy, so that it does not need more disk than in the end.
        _remove_kept(directory, at_work, keep)
        show_to_readers(register, database, settings.privacy, report)
    _remove_kept(directory, at_work, keep)


def _show_profiles(
    attach: Callable[[], AbstractContextManager[Register]],
    settings: Settings,
    report: ProgressReport = not_reported,
) -> None:
    """Makes the profiles where a publication went without, and shows the register with them.

    Readers have the extract by then, and the same answers, slower. Killed on the way, the next
    publication does it.
    """
    register, database, privacy = settings.register.file, settings.database.file, settings.privacy
    if register is None or database is None or has_profiles(database, privacy):
        return
    report(0.0, "making the profiles of enterprises")
    with attach() as opened:
        is_kept = keep_profiles(opened, privacy)
    if is_kept:
        show_to_readers(register, database, privacy, part_of(report, 0.7, 1))


def kept_files(register_file: Path) -> list[Path]:
    """The older published files that are kept, the newest first."""
    files = register_file.with_name("published").glob("*.duckdb")
    keys = {file: key for file in files if (key := key_or_none(file.stem)) is not None}
    return sorted(keys, key=lambda file: keys[file], reverse=True)


def _remove_kept(directory: Path, state: PublishedState, keep: int) -> None:
    """Removes the kept files but the newest; those of extracts that were rolled back too."""
    kept = {file: key_or_none(file.stem) for file in directory.glob("*.duckdb")}
    in_order = [key for key, _ in state.published[1:] if key in kept.values()]
    for file, key in kept.items():
        if key is not None and key not in in_order[:keep]:
            file.unlink(missing_ok=True)
    for leftover in directory.glob("*.part"):  # of a process that was killed: we hold the lock
        leftover.unlink(missing_ok=True)


def complete(
    register: Register,
    staged: Staged,
    check: Callable[[], None] = lambda: None,
    privacy: Privacy = "full",
) -> Publication:
    """Completes an extract whose batches are all applied: `code`, names, the job itself.

    Args:
        register: the register at work.
        staged: the extract, attached as `staging`.
        check: is called when all that is done and not committed; nothing is when it raises.
        privacy: who is in the views.

    Raises:
        NotReadyError: batches are missing; names how many.
    """
    key, ledger = staged.extract.key, register.ledger
    check_order(key, ledger.published())
    missing = ledger.missing_batches(key)
    if missing or ledger.job_status(key) in (None, "rolled_back"):
        raise NotReadyError(
            f"{key}: {missing or len(staged.batches)} of {len(staged.batches)} batches"
            " are not applied; materialize their partitions first"
        )
    with register.database.transaction():
        code = register.apply_rest(staged)
        if key.type == "update":  # in place of the Full by which a repair began
            register.database.execute(register_sql.FORGET_CORRECTIONS, number=key.number)
        names = register.database.count(state_sql.COUNT_NAMES_RESOLVED, number=key.number)
        ledger.complete_job(key, names)
        check()
        is_small = sum(ledger.rows_changed(key).values()) <= CHANGED_AT_MOST
        show(register, privacy, key if is_small else None)
    return _publication(register, key, code, names, already_published=False)


def completed(register: Register, key: ExtractKey) -> Publication | None:
    """What publishing an extract did, when that is done already."""
    names = register.ledger.names_resolved(key)
    if names is None:
        return None
    nothing = TableChange(0, 0, 0, 0, 0, 0.0)
    return _publication(register, key, nothing, names, already_published=True)


def _publication(
    register: Register, key: ExtractKey, code: TableChange, names: int, *, already_published: bool
) -> Publication:
    entry = next(entry for entry in register.ledger.entries() if entry.key == key)
    changed = register.ledger.rows_changed(key)
    return Publication(code, names, register.row_counts(), changed, already_published, entry)


def roll_back(register: Register, key: ExtractKey, privacy: Privacy = "full") -> Rollback:
    """Undoes the newest extract, published or half applied; once, however often called.

    The register holds the row versions that it held before.

    Args:
        register: the register at work.
        key: the extract.
        privacy: who is in the views.

    Raises:
        OrderError: another extract is the newest; names it.
    """
    register.ledger.check_rollback(key)
    if register.ledger.job_status(key) == "rolled_back":
        return Rollback({}, {}, already_rolled_back=True)
    with register.database.transaction():
        dropped, reopened = register.undo(key)
        register.database.execute(register_sql.FORGET_REJECTED, key=str(key))
        register.database.execute(register_sql.FORGET_PROOF, number=key.number)
        register.database.execute(register_sql.FORGET_CORRECTIONS, number=key.number)
        register.ledger.roll_back_job(key)
        show(register, privacy)
    return Rollback(dropped, reopened, already_rolled_back=False)
