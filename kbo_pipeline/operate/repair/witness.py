"""Which of the register at work, the published file and Dagster's records to believe. No Dagster.

The register at work has every published extract, and the published file is a copy of it; what
Dagster knows as applied is in the ledger. When they differ, something was lost outside our
transactions: a disk, a backup that was put back, a hand. `look` says what makes them agree again.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb

from kbo_pipeline.apply.register import Register
from kbo_pipeline.core.database import check_blocks, detach, is_damage, is_duckdb
from kbo_pipeline.core.errors import DamagedError, NotReadyError, RegisterError, StorageError
from kbo_pipeline.core.extracts import (
    ExtractKey,
    LedgerEntry,
    key_or_none,
    read_ledger_entries,
    read_published_state,
)
from kbo_pipeline.core.files import link_or_copy, replace_atomically
from kbo_pipeline.core.places import DuckDBFile, Place
from kbo_pipeline.core.schema import check
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import literal
from kbo_pipeline.core.text import first_line
from kbo_pipeline.publish.copy import show_to_readers
from kbo_pipeline.publish.publish import kept_files, roll_back
from kbo_pipeline.stage.staged import is_staged


@dataclass(frozen=True)
class Snapshot:
    """What a register says.

    Attributes:
        place: where it is.
        is_there: whether there is one.
        damage: why nothing it says counts; None when it is sound.
        is_foreign: it is no damaged register but some other file.
        ledger: its published extracts, the first one first.
        rolled_back: extracts that were rolled back and not imported since.
        half_applied: the extract whose batches are being applied.
        batches: numbers of the batches of that one that are applied.
    """

    place: Place
    is_there: bool = True
    damage: str | None = None
    is_foreign: bool = False
    ledger: tuple[LedgerEntry, ...] = ()
    rolled_back: frozenset[ExtractKey] = frozenset()
    half_applied: ExtractKey | None = None
    batches: frozenset[int] = frozenset()

    @property
    def is_sound(self) -> bool:
        """Whether what it says counts."""
        return self.is_there and self.damage is None

    @property
    def newest(self) -> ExtractKey | None:
        """The newest published extract."""
        return self.ledger[-1].key if self.ledger else None


@dataclass(frozen=True)
class Recorded:
    """What Dagster's storage says.

    Attributes:
        published: the published extracts; the chained hash of the ledger, where it is known.
        applied: the numbers of applied batches, by extract that is not published.
    """

    published: Mapping[ExtractKey, str | None] = field(default_factory=dict)
    applied: Mapping[ExtractKey, frozenset[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class RepairPlan:
    """What makes them agree, in this order; nothing where there are no lines.

    Attributes:
        lines: what was found and is to be done, a line each.
        restore: the register at work becomes a copy of `base`, or new when there is none.
        base: see `restore`.
        undo: this half applied extract is rolled back before readers are shown the rest.
        show: the published file becomes a copy of the register at work.
        forget: extracts that Dagster takes for published and that the register has not.
        lost: those of them to be imported again, as they were not rolled back.
        lost_batches: batches that Dagster takes for applied and that the ledger has not.
        adopt: published extracts that Dagster does not know of.
    """

    lines: tuple[str, ...] = ()
    restore: bool = False
    base: Path | None = None
    undo: ExtractKey | None = None
    show: bool = False
    forget: tuple[ExtractKey, ...] = ()
    lost: tuple[ExtractKey, ...] = ()
    lost_batches: Mapping[ExtractKey, frozenset[int]] = field(default_factory=dict)
    adopt: tuple[LedgerEntry, ...] = ()


def read_snapshot(connection: duckdb.DuckDBPyConnection, file: Path) -> Snapshot:
    """Reads what a register file says, and compares all its checksums; changes nothing.

    The caller holds the lock of a register at work.

    Raises:
        StorageError: another program has it open for writing.
    """
    place = DuckDBFile(file)
    if not file.is_file():
        return Snapshot(place, is_there=False)
    if file.stat().st_size > 0 and not is_duckdb(file):
        return Snapshot(place, damage=f"{file}: not a DuckDB file", is_foreign=True)
    try:
        check_blocks(file)
        connection.execute(f"ATTACH {literal(file)} AS witness (READ_ONLY, TYPE duckdb)")
    except (DamagedError, duckdb.Error) as error:
        if is_damage(error):
            return Snapshot(place, damage=first_line(error))
        raise StorageError(f"{file}: {first_line(error)}; close the program that has it") from None
    try:
        connection.execute("USE witness")
        return _read(connection, place)
    except duckdb.CatalogException:
        damage = f"{file}: a DuckDB file, but not a register of this pipeline"
        return Snapshot(place, damage=damage, is_foreign=True)
    except (duckdb.Error, DamagedError) as error:
        if not is_damage(error):
            raise
        return Snapshot(place, damage=first_line(error))
    finally:
        connection.execute("USE memory")
        connection.execute("DETACH witness")


def _read_shared(connection: duckdb.DuckDBPyConnection, place: Place) -> Snapshot:
    try:
        name = place.attach_to_read(connection, "witness")
    except NotReadyError:
        return Snapshot(place, is_there=False)
    try:
        connection.execute(f"USE {name}.{place.schema_at_work}")
        return _read(connection, place)
    except duckdb.CatalogException:  # nothing was written to it yet
        return Snapshot(place, is_there=False)
    finally:
        detach(connection, name)


def _read(connection: duckdb.DuckDBPyConnection, place: Place) -> Snapshot:
    check(connection, place)
    half_applied = connection.execute(
        "SELECT id FROM import_jobs WHERE status NOT IN ('completed', 'rolled_back')"
    ).fetchone()
    batches = connection.execute(
        """
        SELECT batch_number
        FROM import_job_batches
        WHERE job_id = $id
        GROUP BY batch_number
        HAVING bool_and(status = 'completed')
        """,
        {"id": half_applied[0] if half_applied else ""},
    ).fetchall()
    return Snapshot(
        place,
        ledger=read_ledger_entries(connection),
        rolled_back=read_published_state(connection).rolled_back,
        half_applied=ExtractKey.parse(half_applied[0]) if half_applied else None,
        batches=frozenset(number for (number,) in batches),
    )


def _plan_of_files(
    work: Snapshot, published: Snapshot, recorded: Recorded, kept: Snapshot | None
) -> tuple[RepairPlan, Snapshot]:
    """What is to be done to the files, and what the register at work says then."""
    if published.is_foreign:
        raise RegisterError(f"{published.damage}; move it away, then kbo rebuild")
    lines = tuple(t.damage for t in (work, published) if t.is_there and t.damage is not None)
    if work.is_sound and published.is_sound:
        return _plan_of_sound(work, published)
    if published.is_sound and (work.is_there or published.ledger):
        lines += (f"the register at work becomes a copy of {published.place}",)
        return RepairPlan(lines, restore=True, base=_file(published)), published
    if work.is_sound:
        if not work.ledger:  # nothing was ever published: readers have nothing to lose
            return RepairPlan(lines, show=published.is_there and work.half_applied is None), work
        lines += (f"the register at work is published again: {work.newest}",)
        undone = replace(work, half_applied=None, batches=frozenset())
        return RepairPlan(lines, undo=work.half_applied, show=True), undone
    nothing = Snapshot(work.place, is_there=False)
    if not work.is_there and not published.is_there and not recorded.published:
        return RepairPlan(lines), nothing
    if kept is not None:
        lines += (f"register and published file become copies of {kept.place}",)
        return RepairPlan(lines, restore=True, base=_file(kept), show=True), kept
    if not published.is_there and not recorded.published:  # died in the very first import
        lines += ("the register at work is created again, empty",)
        return RepairPlan(lines, restore=True), nothing
    raise RegisterError(
        f"{'; '.join(lines) or f'{work.place} and {published.place} are gone'}: only the"
        " kept ZIPs are left to restore it from; kbo rebuild --from-zips does so"
    )


def _plan_of_sound(work: Snapshot, published: Snapshot) -> tuple[RepairPlan, Snapshot]:
    """Two sound files: one of them may be behind the other."""
    ours, theirs = _identities(work.ledger), _identities(published.ledger)
    beyond = {entry.key for entry in published.ledger[len(ours) :]}
    if ours == theirs:
        if work.ledger == published.ledger or work.half_applied is not None:
            return RepairPlan(), work
        return RepairPlan(("the newer ledger is published",), show=True), work
    if ours[: len(theirs)] == theirs or (
        theirs[: len(ours)] == ours and beyond <= work.rolled_back | {work.half_applied}
    ):
        if work.half_applied is not None:
            return RepairPlan(), work  # readers see both when that one is published
        line = f"{_file(published).name} is at {published.newest}, the register at {work.newest}"
        return RepairPlan((f"{line}: the register is published",), show=True), work
    if theirs[: len(ours)] == ours:
        line = f"{work.place}: has lost its newest extracts: it is at {work.newest}"
        line += f", {_file(published).name} at {published.newest}; it becomes a copy of that"
        return RepairPlan((line,), restore=True, base=_file(published)), published
    raise RegisterError(
        f"{work.place} and {published.place} are registers of different extracts; keep the right"
        " one and move the other away, or run kbo rebuild --from-zips"
    )


def _plan_records(files: RepairPlan, truth: Snapshot, recorded: Recorded) -> RepairPlan:
    """What is to be done to Dagster's records, once the register says what `truth` says."""
    published = {entry.key for entry in truth.ledger}
    newest = truth.newest.number if truth.newest else -1
    gone = {key for key in recorded.published if key not in published and key.number > newest}
    undone = truth.rolled_back & {*recorded.published, *recorded.applied}
    lost = sorted(gone - undone)
    if {*lost} - {truth.half_applied} and not published:  # the first Full may be under repair
        raise RegisterError(
            f"{truth.place}: empty, although Dagster's database has {lost[-1]} as published; kbo"
            " rebuild --from-zips recreates the register, or set another DAGSTER_POSTGRES_URL"
        )
    forget = sorted(gone | undone)
    lines = [f"{key}: published according to Dagster, but not in the register" for key in forget]
    lost_batches = {}
    for key, applied in recorded.applied.items():
        there = truth.batches if key == truth.half_applied else frozenset()
        if key not in published and key not in forget and (missing := applied - there):
            lost_batches[key] = missing
            lines.append(
                f"{key}: {len(missing)} batches are applied according to Dagster, but not in the"
                " ledger"
            )
    newest_recorded = max(
        (key.number for key in recorded.published if key in published), default=-1
    )
    adopt = [
        entry
        for entry in truth.ledger
        if entry.key not in recorded.published and entry.key.number > newest_recorded
    ]
    if adopt:
        lines.append(f"{_listed(adopt)}: published, but unknown to Dagster: recorded there")
    for head in truth.ledger[-1:]:
        if recorded.published.get(head.key) not in (None, head.hash):
            lines.append(
                f"{head.key}: published with another ledger than Dagster has: recorded there"
            )
            adopt.append(head)
    return replace(
        files,
        lines=(*files.lines, *lines),
        forget=tuple(forget),
        lost=tuple(lost),
        lost_batches=lost_batches,
        adopt=tuple(adopt),
    )


def repair_files(
    settings: Settings, plan: RepairPlan, attach: Callable[[], AbstractContextManager[Register]]
) -> None:
    """Does what a plan says to the register at work and to the published file.

    To a shared register nothing is to be done: its copies are PostgreSQL's and the files' backups.

    Args:
        settings: say where they are.
        plan: made by `look`, under the same hold of the register's lock.
        attach: attaches the register at work, as `open_register_to_copy` yields it.
    """
    published, register = settings.database.file, settings.register_file
    if published is None:
        return
    if plan.restore:
        _put_aside(settings, register)
    if plan.show:
        _put_aside(settings, published)
    if plan.restore and plan.base is None:
        with replace_atomically(register) as temporary:
            duckdb.connect(str(temporary)).close()
    elif plan.base is not None:
        with replace_atomically(register) as temporary:
            shutil.copyfile(plan.base, temporary)
    if plan.show:
        with attach() as opened:
            if plan.undo is not None:
                roll_back(opened, plan.undo, settings.privacy)
            opened.checkpoint()
        show_to_readers(register, published, settings.privacy)


def _put_aside(settings: Settings, file: Path) -> None:
    """Keeps what is about to be replaced, in place of what was replaced before."""
    if file.exists():
        with replace_atomically(settings.work_dir / "damaged" / file.name) as temporary:
            link_or_copy(file, temporary)


def look(
    connection: duckdb.DuckDBPyConnection, settings: Settings, recorded: Recorded
) -> RepairPlan:
    """Plans what makes everything agree; changes nothing. The caller holds the register's lock.

    Raises:
        StorageError: another program has the published file open for writing.
        RegisterError: what is left does not tell what was; names the next step.
    """
    work, published = _read_both(connection, settings)
    kept = None
    if not work.is_sound and not published.is_sound:
        older = (read_snapshot(connection, file) for file in kept_files(settings.register_file))
        kept = next((t for t in older if t.is_sound and t.ledger), None)
    files, truth = _plan_of_files(work, published, recorded, kept)
    return _plan_records(files, truth, recorded)


def _read_both(
    connection: duckdb.DuckDBPyConnection, settings: Settings
) -> tuple[Snapshot, Snapshot]:
    """What the register at work says, and what readers see; the same where they share it."""
    if settings.database.file is None:
        shared = _read_shared(connection, settings.database)
        return shared, shared
    return (
        read_snapshot(connection, settings.register_file),
        read_snapshot(connection, settings.database.file),
    )


def newest_known(settings: Settings, recorded: Recorded) -> ExtractKey | None:
    """The newest extract that anything says was published; None when nothing says so."""
    with duckdb.connect(":memory:") as connection:
        work, published = _read_both(connection, settings)
    extracts = {*recorded.published, *(entry.key for entry in (*work.ledger, *published.ledger))}
    return max(extracts - work.rolled_back, default=None)


def damaged_staging(settings: Settings) -> dict[ExtractKey, Path]:
    """The staging files that are not what this program would have staged, by extract."""
    damaged = {}
    for file in sorted(settings.staging_dir.glob("*.duckdb")):
        key = key_or_none(file.stem)
        if key is None:
            continue
        try:
            check_blocks(file)
        except FileNotFoundError:  # published meanwhile
            continue
        except DamagedError:
            damaged[key] = file
            continue
        if not is_staged(settings.staging_dir, key) and file.exists():  # not published meanwhile
            damaged[key] = file
    return damaged


def _identities(ledger: Sequence[LedgerEntry]) -> list[tuple[ExtractKey, str]]:
    return [(entry.key, entry.sha256) for entry in ledger]


def _listed(entries: Sequence[LedgerEntry]) -> str:
    if len(entries) < 4:
        return ", ".join(str(entry.key) for entry in entries)
    return f"{entries[0].key} to {entries[-1].key}"


def _file(snapshot: Snapshot) -> Path:
    """The file of a snapshot of which a copy is to be made."""
    if snapshot.place.file is None:
        raise RegisterError(f"{snapshot.place}: no file to restore from; restore its backup")
    return snapshot.place.file
