"""Publications and rollbacks in the register at work, each one transaction with the ledger.

With the commit, readers of a shared register see it; those of a file see it with the next copy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kbo_pipeline.apply import lake_sql as shared_sql
from kbo_pipeline.apply import sql as register_sql
from kbo_pipeline.apply.ledger import TableChange
from kbo_pipeline.apply.register import Register
from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.ledger import LedgerEntry
from kbo_pipeline.core.order import check_order
from kbo_pipeline.core.settings import Privacy
from kbo_pipeline.read import state_sql
from kbo_pipeline.read.state_sql import fill_shown
from kbo_pipeline.read.views import READ_MARK, create_views, mark
from kbo_pipeline.stage.staged import Staged


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing an extract did.

    Attributes:
        code: the change of the `code` table.
        names_resolved: entities whose primary name was resolved anew.
        row_counts: current rows by table name, all eight.
        rows_changed: row versions that the extract closed or opened, by table name, the seven.
        already_published: nothing was done now.
        link: the extract in the chain of the ledger.
    """

    code: TableChange
    names_resolved: int
    row_counts: Mapping[str, int]
    rows_changed: Mapping[str, int]
    already_published: bool
    link: LedgerEntry


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
        names = register.database.count(state_sql.COUNT_NAMES_RESOLVED, number=key.number)
        ledger.complete_job(key, names)
        check()
        show(register, privacy)
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
    link = next(link for link in register.ledger.chain() if link.key == key)
    changed = register.ledger.rows_changed(key)
    return Publication(code, names, register.row_counts(), changed, already_published, link)


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
        register.ledger.roll_back_job(key)
        show(register, privacy)
    return Rollback(dropped, reopened, already_rolled_back=False)


def show(register: Register, privacy: Privacy) -> None:
    """Makes what readers see besides the rows: views, and who is left out of them.

    Part of the caller's transaction. A copy for readers has them from there.
    """
    statements = fill_shown(privacy)
    if not has_views(register, privacy):
        statements = create_views(privacy, _below_views(register))
    with register.readers_schema():
        for statement in statements:
            register.database.execute(statement)


def has_views(register: Register, privacy: Privacy) -> bool:
    """Tells whether the views of the register are those that would be made for it now."""
    with register.readers_schema():
        return register.database.row(READ_MARK) == (mark(privacy, _below_views(register)),)


def renew_views(register: Register, privacy: Privacy) -> bool:
    """Makes the views of a shared register anew, where they are not those that it should have.

    Returns:
        False when nothing had to be done.
    """
    if register.ledger.published() is None or has_views(register, privacy):
        return False
    register.database.commit(lambda: show(register, privacy))
    return True


def _below_views(register: Register) -> tuple[str, ...]:
    return tuple(shared_sql.published_views()) if register.is_shared else ()
