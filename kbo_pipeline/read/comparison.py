"""What an extract changed, compared with the extracts before it, and what is unusual in it. No SQL.

`docs/change-report.md` explains to readers what is called usual and unusual.
"""

import datetime
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.text import counted
from kbo_pipeline.read.types import Change

CLOSED, OPENED = "closed", "opened"

MOST = 10
"""Unusual things that are named."""

_MOST_COUNTS = 4
_MOST_RARE = 3

LEAST_PAST = 8
"""Numbers that must be known before another can be unusual."""
FACTOR = 3.0
"""An unusual number is more than this times the median, or less than the median by this."""
LEAST_ROWS = 50
"""Its least distance from the median."""
SPREADS = 4.0
"""Its least distance from the median, in usual spreads."""

Counts = Mapping[tuple[str, str], int]
"""Numbers by table and kind, or by table and `closed` or `opened`."""


@dataclass(frozen=True, slots=True)
class Standout:
    """An enterprise that stands out among those that an extract changed.

    Attributes:
        kinds: in how many ways it changed.
        entities: how many of its entities changed: itself, establishment units, branches.
        listed: the ways, in words.
    """

    enterprise_number: str
    name: str
    kinds: int
    entities: int
    listed: str


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One unusual thing.

    Attributes:
        subject: a table and kind, or an enterprise with its name.
        text: what is unusual.
    """

    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Day:
    """An extract, and the rows that it closed and opened, by table."""

    key: ExtractKey
    snapshot_date: datetime.date
    rows: Counts

    def of_table(self, name: str) -> int:
        """Rows of a table that it closed or opened."""
        return self.rows[name, CLOSED] + self.rows[name, OPENED]

    @property
    def total(self) -> int:
        """Rows of all tables that it closed or opened."""
        return sum(self.rows.values())


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """What an extract changed.

    Attributes:
        before: the extracts before it, the oldest first.
        rejected_count: records that are set aside.
        rejected: file, line, column and reason of the first of them; no column where it is about a
            whole record.
        is_first: nothing was in the register before: all is new, and nothing is listed.
        kinds: changed entities, by table and kind, all kinds in their order.
        past_kinds: those of the extracts before that have a report.
        entities: how many entities changed.
        examples: some changes of each kind.
    """

    day: Day
    before: tuple[Day, ...]
    rejected_count: int
    rejected: tuple[tuple[str, int, str | None, str], ...]
    is_first: bool = True
    kinds: Counts = field(default_factory=dict)
    past_kinds: tuple[Counts, ...] = ()
    entities: int = 0
    examples: tuple[Change, ...] = ()
    unusual: tuple[Anomaly, ...] = ()

    @property
    def changes(self) -> int:
        """Changes of all kinds: an entity may have several."""
        return sum(self.kinds.values())


def find_anomalies(
    rows: Counts,
    past_rows: Sequence[Counts],
    kinds: Counts,
    past_kinds: Sequence[Counts],
    most_kinds: Sequence[Standout],
    most_entities: Sequence[Standout],
) -> list[Anomaly]:
    """The most unusual things in an extract, at most `MOST`.

    Numbers far from usual come first, then kinds that none of the extracts before had, then
    alternately the enterprises with the most kinds of changes and those with the most changed
    entities.

    Args:
        rows: rows closed and opened, by table.
        past_rows: those of the extracts before.
        kinds: changed entities, by table and kind.
        past_kinds: those of the extracts before, as far as they are known.
        most_kinds: the enterprises that changed in the most ways.
        most_entities: the enterprises of which the most entities changed.
    """
    far = [
        *_far_from_baseline(rows, past_rows, "rows"),
        *_far_from_baseline(kinds, past_kinds, "entities"),
    ]
    far.sort(key=lambda anomaly: -anomaly[0])
    anomalies = [anomaly for _, anomaly in far[:_MOST_COUNTS]]
    anomalies += list(_rare(kinds, past_kinds))[:_MOST_RARE]
    return [*anomalies, *_by_turns(most_kinds, most_entities)][:MOST]


def median_of(past: Sequence[Counts], name: tuple[str, str]) -> int | None:
    """The usual number; None while too few are known."""
    if len(past) < LEAST_PAST:
        return None
    return round(statistics.median(counts.get(name, 0) for counts in past))


def _far_from_baseline(
    counts: Counts, past: Sequence[Counts], unit: str
) -> Iterator[tuple[float, Anomaly]]:
    """Each number far from the median of those before, with its distance in logarithms."""
    for name, count in counts.items():
        usual = median_of(past, name)
        if usual is None or not is_anomalous(count, [before.get(name, 0) for before in past]):
            continue
        text = (
            f"{count:,} {unit}; usual is {usual:,}, the median of the {len(past)} extracts before"
        )
        yield abs(math.log1p(count) - math.log1p(usual)), Anomaly(" ".join(name), text)


def _rare(kinds: Counts, past: Sequence[Counts]) -> Iterator[Anomaly]:
    if len(past) < LEAST_PAST:
        return
    for name, count in kinds.items():
        if count and not any(before.get(name) for before in past):
            entities = counted(count, "entity", "entities")
            yield Anomaly(" ".join(name), f"{entities}; none in the {len(past)} extracts before")


_KINDS_AT_ONCE = "{0.kinds} kinds of changes at once"
_ENTITIES_CHANGED = "{0.entities:,} of its entities changed"


def _by_turns(
    most_kinds: Sequence[Standout], most_entities: Sequence[Standout]
) -> Iterator[Anomaly]:
    named: set[str] = set()
    for pair in zip_longest(most_kinds, most_entities):
        for enterprise, how in zip(pair, (_KINDS_AT_ONCE, _ENTITIES_CHANGED), strict=True):
            if enterprise is not None and enterprise.enterprise_number not in named:
                named.add(enterprise.enterprise_number)
                subject = f"{enterprise.enterprise_number} {enterprise.name}"
                yield Anomaly(subject, f"{how.format(enterprise)}: {enterprise.listed}")


def is_anomalous(count: int, past: Sequence[int]) -> bool:
    """Tells whether a number is far from what it was, by median and spread of the logarithms.

    One day in 30 may bring a thousand times as much, and must not make the next one usual. So the
    spread is the median distance from the median, which few days cannot move; of logarithms,
    because the numbers grow by factors.
    """
    if len(past) < LEAST_PAST:
        return False
    logarithms = [math.log1p(number) for number in past]
    median = statistics.median(logarithms)
    spread = 1.4826 * statistics.median(abs(number - median) for number in logarithms)
    distance = abs(math.log1p(count) - median)
    return (
        distance > max(SPREADS * spread, math.log(FACTOR))
        and abs(count - math.expm1(median)) >= LEAST_ROWS
    )
