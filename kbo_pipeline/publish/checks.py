"""The checks: what must hold of the register before readers see an extract.

An error stops the publication; a warning is only reported, because KBO itself decides what it
publishes. `CHECKS` declares all of them; `check_register` and `stop_on_errors` in `publish.publish`
run and judge them, before the commit.
"""

import datetime
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.extracts import ExtractKey, ExtractType
from kbo_pipeline.core.tables import ALL_TABLES, TABLES, Table
from kbo_pipeline.core.text import counted
from kbo_pipeline.publish import checks_sql
from kbo_pipeline.read.comparison import (
    FACTOR,
    LEAST_PAST,
    LEAST_ROWS,
    SPREADS,
    is_anomalous,
)

Severity = Literal["error", "warning"]

SAMPLE_ROWS = 10
"""The most offending rows that a result shows."""

FIRST_DATE = datetime.date(1750, 1, 1)
DAYS_AHEAD = datetime.timedelta(days=400)

LOSS_FROM_ROWS = 20
"""Losses of fewer rows are ignored: in a small table they quickly reach several percent."""

MAX_LOSS: Mapping[ExtractType, str] = {
    "update": "KBO_MAX_LOSS_PERCENT",
    "full": "KBO_MAX_LOSS_PERCENT_FULL",
}
"""The settings for the percentage of a table that an extract may remove without being accepted."""

WEEKDAYS_COMPARED = 30
"""Updates of the same weekday that one is compared with, the newest."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one look at one table found.

    Attributes:
        count: rows in which something is wrong.
        text: what was found, in one line.
        columns: names of the columns of `sample`.
        sample: the first offences, `SAMPLE_ROWS` at most.
        looked_at: which rows were looked at, in words.
    """

    count: int
    text: str
    columns: tuple[str, ...] = ()
    sample: tuple[tuple[Any, ...], ...] = ()
    looked_at: str = "all rows"


@dataclass(frozen=True, slots=True)
class TableRows:
    """How many rows of a table are current, and were opened and closed by the newest extract."""

    current: int
    opened: int
    closed: int

    @property
    def before(self) -> int:
        """Rows that were current before the extract."""
        return self.current - self.opened + self.closed

    @property
    def lost(self) -> int:
        """Rows that the extract took away, net; negative when it added some."""
        return self.closed - self.opened


@dataclass(frozen=True, slots=True)
class Subject:
    """A register with an extract as its newest, attached as `register`.

    Attributes:
        database: the connection.
        key: the newest extract, applied whole.
        snapshot_date: of the extract.
        touched: how many entities the extract touches, when only those are looked at.
        is_staged: the extract's staging file is attached as `staging`.
        max_loss_percent: rows of a table that the extract may take away, 0 to 100.
    """

    database: Database
    key: ExtractKey
    snapshot_date: datetime.date
    touched: int | None
    is_staged: bool
    max_loss_percent: float
    _rows: dict[Table, TableRows] = field(default_factory=dict)

    def source(self, table: Table) -> str:
        """What is looked at of a table; all of one that holds no numbers of entities: `code`."""
        if self.touched is not None and checks_sql.number_columns(table):
            return checks_sql.part(table)
        return table.name

    def rows(self, table: Table) -> TableRows:
        """Counts the rows of a table, once."""
        if table not in self._rows:
            counts = self.database.row(checks_sql.count_rows(table), number=self.key.number)
            self._rows[table] = TableRows(*(counts or (0, 0, 0)))
        return self._rows[table]

    def offences(self, table: Table, query: str, what: str, **parameters: Any) -> Found:
        """Runs a query for offences in a table; `what` names them, in the plural."""
        cursor = self.database.execute(checks_sql.counted(query, SAMPLE_ROWS), **parameters)
        columns = tuple(str(column[0]) for column in cursor.description or ())
        rows = cursor.fetchall()
        count = int(rows[0][-1]) if rows else 0
        text = f"{count:,} {what}" if count else f"no {what}"
        looked_at = (
            "all rows"
            if self.source(table) == table.name
            else f"rows of the {self.touched:,} entities that {self.key} changes"
        )
        return Found(count, text, columns[:-2], tuple(row[:-2] for row in rows), looked_at)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at, on one or more tables.

    Attributes:
        name: its name in the UI.
        severity: an `error` stops publication.
        description: what it means, for people who do not know KBO.
        tables: the tables that it is about; None stands for the extract as a whole.
        look: looks at one of them.
    """

    name: str
    severity: Severity
    description: str
    tables: tuple[Table | None, ...]
    look: Callable[[Subject, Any], Found]


def _shared_keys(subject: Subject, table: Table) -> Found:
    query = checks_sql.shared_keys(table, subject.source(table))
    return subject.offences(table, query, f"values of {table.key} with more than one current row")


def _contradictions(subject: Subject, table: Table) -> Found:
    # After a Full, `ledger_equals_rows` knows of all tables but `code` how many rows are current.
    is_counted = subject.key.type == "full" and table in TABLES
    query = checks_sql.contradictions(table, subject.source(table), is_counted=is_counted)
    return subject.offences(table, query, "row versions that overlap", number=subject.key.number)


def _without_entity(subject: Subject, table: Table) -> Found:
    query = checks_sql.without_entity(
        table, subject.source(table), is_part=subject.touched is not None
    )
    return subject.offences(table, query, "rows without a current entity")


def _unknown_codes(subject: Subject, table: Table) -> Found:
    vanished = subject.database.execute(
        checks_sql.CATEGORIES_WITH_LESS, number=subject.key.number
    ).fetchall()
    if any(checks_sql.uses_category(table, category) for (category,) in vanished):
        subject = replace(subject, touched=None)  # untouched rows may have that code
    return subject.offences(
        table,
        checks_sql.unknown_codes(table, subject.source(table)),
        "values with a code that is not in code",
    )


def _wrong_check_digits(subject: Subject, table: Table) -> Found:
    query = checks_sql.wrong_check_digits(table, subject.source(table))
    return subject.offences(table, query, "numbers with wrong check digits")


def _implausible_dates(subject: Subject, table: Table) -> Found:
    last = subject.snapshot_date + DAYS_AHEAD
    return subject.offences(
        table,
        checks_sql.implausible_dates(table, subject.source(table)),
        f"dates before {FIRST_DATE} or after {last}",
        first=FIRST_DATE,
        last=last,
    )


def _ledger_differences(subject: Subject, table: None) -> Found:
    columns = ("table_name", "what", "ledger", "found")
    differences = tuple(
        (name, what, expected, there)
        for name, what, expected, there, is_right in _ledger_comparisons(subject)
        if not is_right
    )
    text = "the ledger and the rows agree"
    if differences:
        name, what, expected, there = differences[0]
        text = f"{name}: {what}: the ledger says {expected:,}, there are {there:,}"
    return Found(len(differences), text, columns, differences[:SAMPLE_ROWS])


def _ledger_comparisons(subject: Subject) -> Iterator[tuple[str, str, int, int, bool]]:
    """Table, what, what the ledger says of it, what there is, and whether that is right."""
    key, database = subject.key, subject.database
    total = database.count("SELECT total_batches FROM import_jobs WHERE id = $id", id=str(key))
    ledger = {
        (row[0], row[1]): row[2:]
        for row in database.execute(checks_sql.LEDGER_OF_EXTRACT, id=str(key)).fetchall()
    }
    staged, members = {}, {}
    if subject.is_staged:
        rows = database.execute(checks_sql.STAGED_MEMBERS).fetchall()
        members = {(row[0], row[1]): row[2:] for row in rows}
        rows = database.execute(checks_sql.staged_rows(key)).fetchall()
        staged = {(name, operation): count for name, operation, count in rows}
    for table in TABLES:
        opened = closed = unchanged = 0
        for operation in key.operations:
            nothing = (0, True, 0, 0, 0, 0, 0)
            batches, is_complete, records, *changes = ledger.get((table.name, operation), nothing)
            what = f"batches ({operation})"
            yield table.name, what, batches, total, batches == total and is_complete
            if subject.is_staged:
                rows = staged.get((table.name, operation), 0)
                yield table.name, f"rows ({operation})", records, rows, records == rows
                in_zip, rejected = members.get((table.name, operation), (0, 0))
                accounted = rejected + (records if operation == "delete" else _inserted(changes))
                what = f"records in the ZIP ({operation})"
                yield table.name, what, accounted, in_zip, accounted == in_zip
            opened, closed = opened + changes[0], closed + changes[1]
            unchanged += changes[2]
        there = subject.rows(table)
        # At most: batches that were applied, and staged again in another cut, open nothing again.
        yield table.name, "rows opened", opened, there.opened, opened <= there.opened
        yield table.name, "rows closed", closed, there.closed, closed <= there.closed
        if key.type == "full":
            current = opened + unchanged
            yield table.name, "current rows", current, there.current, current == there.current


def _date_before(subject: Subject, table: None) -> Found:
    before = subject.database.row(
        checks_sql.PUBLISHED_BEFORE, number=subject.key.number, date=subject.snapshot_date
    )
    if before is None:
        return Found(0, f"no extract before it is of a later day than {subject.snapshot_date}")
    extract, date = before
    return Found(
        1,
        f"data of {subject.snapshot_date}, but {extract} before it has data of {date}",
        ("extract", "snapshot_date"),
        ((extract, date),),
    )


def _inserted(changes: Sequence[int]) -> int:
    """Rows that the ledger says were opened, were there, or were there twice."""
    opened, _, unchanged, duplicates = changes
    return opened + unchanged + duplicates


def _rejected_rows(subject: Subject, table: None) -> Found:
    rows = subject.database.execute(checks_sql.REJECTED_ROWS, key=str(subject.key)).fetchall()
    text = "no rows set aside"
    if rows:
        file, line, column, reason = rows[0]
        place = ": ".join(part for part in (file, f"line {line}", column, reason) if part)
        text = f"{counted(len(rows), 'row')} set aside, in rejected_row; the first: {place}"
    columns = ("file", "line", "column", "reason")
    return Found(len(rows), text, columns, tuple(rows[:SAMPLE_ROWS]))


def _unusual_change(subject: Subject, table: Table) -> Found:
    if subject.key.type == "full":
        return Found(0, "a Full is not compared")
    database = subject.database
    numbers = [
        int(number)
        for (number,) in database.execute(
            checks_sql.SAME_WEEKDAY,
            number=subject.key.number,
            date=subject.snapshot_date,
            extracts=WEEKDAYS_COMPARED,
        ).fetchall()
    ]
    if len(numbers) < LEAST_PAST:
        return Found(0, f"{len(numbers)} Updates of this weekday: not enough to compare")
    past = database.execute(checks_sql.rows_of_extracts(table, numbers)).fetchall()
    now = subject.rows(table)
    anomalies = tuple(
        (what, count, int(statistics.median(before)), len(before))
        for what, count, before in (
            ("opened", now.opened, [opened for opened, _ in past]),
            ("closed", now.closed, [closed for _, closed in past]),
        )
        if is_anomalous(count, before)
    )
    text = ", ".join(
        f"{count:,} rows {what}, usual are {usual:,}" for what, count, usual, _ in anomalies
    )
    columns = ("what", "rows", "usual", "updates_compared")
    return Found(len(anomalies), text or "as usual", columns, anomalies)


def _loss(subject: Subject, table: Table) -> Found:
    rows = subject.rows(table)
    percent = 100 * rows.lost / rows.before if rows.before else 0.0
    if rows.lost <= 0:
        return Found(0, f"{-rows.lost:,} more rows than before")
    text = f"{rows.lost:,} of {rows.before:,} rows lost ({percent:.1f} %)"
    if percent <= subject.max_loss_percent or rows.lost < LOSS_FROM_ROWS:
        return Found(0, text)
    return Found(
        rows.lost,
        f"{text}, more than {MAX_LOSS[subject.key.type]} ({subject.max_loss_percent:g})",
        ("before", "opened", "closed", "current"),
        ((rows.before, rows.opened, rows.closed, rows.current),),
    )


LOSS = Check(
    "loss",
    "error",
    f"An extract takes away few rows net. An Update that takes away more than {MAX_LOSS['update']},"
    f" or a Full more than {MAX_LOSS['full']}, of a table that is published ({LOSS_FROM_ROWS} rows"
    " at least) is not published before somebody accepts it: KBO may have sent half a file.",
    ALL_TABLES,
    _loss,
)

CHECKS: tuple[Check, ...] = (
    Check(
        "one_current_row",
        "error",
        "Each number has one current row at most. With two, the data contradicts itself.",
        tuple(table for table in TABLES if table.unique_key),
        _shared_keys,
    ),
    Check(
        "no_overlapping_versions",
        "error",
        "A row holds from one extract until another. Two versions of the same row never hold at"
        " the same time, and none ends before it begins.",
        ALL_TABLES,
        _contradictions,
    ),
    Check(
        "belongs_to_current_entity",
        "warning",
        "Each row is about an entity, establishment unit or branch that is in the register now."
        " KBO sometimes removes one and keeps what belonged to it.",
        tuple(table for table in TABLES if checks_sql.references(table)),
        _without_entity,
    ),
    Check(
        "codes_known",
        "warning",
        "Each code has its meaning in the table `code`. KBO uses some that it never explains, such"
        " as FAX as a kind of contact.",
        tuple(table for table in TABLES if checks_sql.code_columns(table)),
        _unknown_codes,
    ),
    Check(
        "check_digits",
        "warning",
        "The last two digits of the number of an entity or establishment unit follow from the"
        " eight before them: 97 less their remainder by 97. Otherwise there is a typing error.",
        tuple(table for table in TABLES if checks_sql.has_check_digits(table)),
        _wrong_check_digits,
    ),
    Check(
        "dates_plausible",
        "warning",
        f"No date is before {FIRST_DATE} or more than {DAYS_AHEAD.days} days after the date of the"
        " data.",
        tuple(table for table in TABLES if checks_sql.date_columns(table)),
        _implausible_dates,
    ),
    Check(
        "rows_set_aside",
        "warning",
        "Each record of the ZIP can be read. One with an impossible date, a number out of shape, or"
        " broken quotes is not applied; it is kept in `rejected_row`.",
        (None,),
        _rejected_rows,
    ),
    Check(
        "ledger_equals_rows",
        "error",
        "What the ledger says was applied is there: every batch of the extract once, as many rows"
        " as were staged, as many opened and closed rows as it counted, and together with"
        " duplicates and rows set aside as many as the ZIP has records; after a Full, exactly its"
        " rows are current.",
        (None,),
        _ledger_differences,
    ),
    Check(
        "date_in_order",
        "warning",
        "The data of an extract is not of an earlier day than that of one published before it. It"
        " may be an old file under a new number.",
        (None,),
        _date_before,
    ),
    Check(
        "usual_change",
        "warning",
        f"An Update opens and closes about as many rows as the last {WEEKDAYS_COMPARED} of the"
        f" same weekday. Unusual is {FACTOR:g} times as many, or as few, as their median,"
        f" {LEAST_ROWS} rows and {SPREADS:g} times their usual spread away from it; with"
        f" fewer than {LEAST_PAST} to compare, nothing is.",
        ALL_TABLES,
        _unusual_change,
    ),
    LOSS,
)
"""All checks, in the order in which they are made."""
