"""Check: the register is looked at before readers see an extract. No Dagster.

What an extract did not touch is as it was when it was checked, so an extract is judged by the
entities of which it opened or closed a row; the first one by everything.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import duckdb

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import (
    NOTHING_PUBLISHED,
    CheckFailedError,
    NotReadyError,
    RegisterError,
)
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.places import Place
from kbo_pipeline.core.shares import ShareReport, not_reported
from kbo_pipeline.core.tables import TABLES, Table
from kbo_pipeline.publish import checks_sql
from kbo_pipeline.publish.checks import CHECKS, LOSS, Check, Found, Severity, Subject
from kbo_pipeline.read.published import open_published

CHANGED_AT_MOST = 1_000_000
"""Rows that an extract may open and close before looking at everything is quicker."""


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
        """Whether it would stop publication, had nobody accepted it."""
        return not self.passed and self.severity != self.check.severity

    def __str__(self) -> str:
        name = self.table.name if self.table else "ledger"
        return f"{name}: {self.found.text}"


def check_register(
    connection: duckdb.DuckDBPyConnection,
    key: ExtractKey,
    *,
    is_staged: bool,
    max_loss_percent: float,
    max_loss_percent_full: float,
    accept_loss: bool = False,
    everything: bool = False,
    only: Collection[tuple[str, str | None]] | None = None,
    report: ShareReport = not_reported,
) -> list[CheckResult]:
    """Looks at the register that is the default database, after its newest extract.

    Args:
        connection: an in-memory DuckDB with the register.
        key: the newest extract, applied whole.
        is_staged: its staging file is attached as `staging`.
        max_loss_percent: rows of a table that an Update may take away, 0 to 100.
        max_loss_percent_full: rows of a table that a Full may take away.
        accept_loss: a larger loss is a warning only: somebody has accepted it.
        everything: looks at all rows, whatever the extract touches.
        only: names of checks with the names of their tables; None for all.
        report: takes how much is done.

    Raises:
        RegisterError: the ledger does not know the extract.
    """
    database = Database(connection)
    row = database.row("SELECT snapshot_date FROM import_jobs WHERE id = $id", id=str(key))
    if row is None:
        raise RegisterError(f"{key}: not in import_jobs; import it first")
    may_lose = max_loss_percent_full if key.type == "full" else max_loss_percent
    subject = Subject(database, key, row[0], None, is_staged, may_lose)
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
    """Puts aside what speaks of entities that an extract touches; returns how many these are."""
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
    """Looks at all rows that readers see.

    Returns:
        The newest extract in it, and what was found.

    Raises:
        NotReadyError: nothing is published.
    """
    with open_published(connection, database) as standing:
        key = standing.newest
        if key is None:
            raise NotReadyError(f"{database}: {NOTHING_PUBLISHED}")
        results = check_register(
            connection,
            key,
            is_staged=False,
            max_loss_percent=max_loss_percent,
            max_loss_percent_full=max_loss_percent_full,
            accept_loss=True,  # whoever published it did
            everything=True,
            only=only,
        )
    return key, results


def stop_on_errors(key: ExtractKey, results: Sequence[CheckResult]) -> None:
    """Lets an extract pass that may be published.

    Raises:
        CheckFailedError: names what is wrong first, how many more there are, and the next step.
    """
    blocking = [result for result in results if result.blocks]
    if not blocking:
        return
    more = f" (and {len(blocking) - 1} more)" if len(blocking) > 1 else ""
    undo = f"kbo rollback {key} undoes it"
    if all(result.check is LOSS for result in blocking):
        undo = f"kbo publish {key} --accept-loss publishes it, or {undo}"
    raise CheckFailedError(f"{key}: not published: {blocking[0]}{more}; {undo}")
