"""Extracts and their batches: keys, file names, which is next, which ones a register has.

There are four ways to ask what is published:

- `read_published_state(connection)`: of the register that a connection has as its default database.
- `read.published.published_state_of(place)`: of what readers open, at a glance; nothing where
  nothing is published. For deciding what to do next.
- `read.published.open_published(connection, place)`: the same, which stays open to be read; an
  error where nothing is published.
- `operate.runs.progress.Progress`: what Dagster has recorded; `newest_published` prefers the
  register where both can be asked.

The first three give a `PublishedState`, which answers for one extract or number.
"""

import datetime
import functools
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from kbo_pipeline.core.errors import ExtractError, NotReadyError, OrderError

if TYPE_CHECKING:
    import duckdb

ExtractType = Literal["full", "update"]
Operation = Literal["delete", "insert"]

_KEY = re.compile(r"(\d{4,9})-(full|update)")
_BATCH_KEY = re.compile(r"(.+)-(\d{4,9})")
_FILE_NAME = re.compile(
    r"KboOpenData_(?P<number>\d{4,9})_(?P<date>\d{4}_\d{2}(_\d{2})?)_(?P<type>Full|Update)\.zip",
    re.ASCII | re.IGNORECASE,
)


@functools.total_ordering
@dataclass(frozen=True, slots=True)
class ExtractKey:
    """Names one extract; as text `0141-update`, the key of its partition.

    The order is that of importing: by number, and of one number the Update first. It costs less
    than the Full, which leads to the same state.
    """

    number: int
    type: ExtractType

    @classmethod
    def parse(cls, text: str) -> "ExtractKey":
        """Reads a key such as `0141-update`.

        Raises:
            ExtractError: the text is no key, or not the one way to write it.
        """
        match = _KEY.fullmatch(text)
        if match:
            key = cls(int(match[1]), cast(ExtractType, match[2]))
            if key.number > 0 and str(key) == text:
                return key
        raise ExtractError(f"{text[:80]!r} is not an extract; expected a key such as 0141-update")

    def __str__(self) -> str:
        return f"{self.number:04d}-{self.type}"

    def __lt__(self, other: "ExtractKey") -> bool:
        return (self.number, self.type == "full") < (other.number, other.type == "full")

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What its files do, in the order in which it counts: deletes first, inserts after."""
        return ("insert",) if self.type == "full" else ("delete", "insert")


@dataclass(frozen=True, slots=True)
class Extract:
    """One KBO ZIP, as its `meta.csv` describes it.

    Attributes:
        key: number and type.
        snapshot_date: the day whose end the data shows.
        timestamp: when KBO made it, in Brussels time.
        version: version of the file format.
        source_file: the ZIP's file name.
        sha256: of the ZIP, in hexadecimal.
    """

    key: ExtractKey
    snapshot_date: datetime.date
    timestamp: datetime.datetime
    version: str
    source_file: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name that KBO gives to a daily ZIP of this key; it carries the publication day."""
        kind = self.key.type.capitalize()
        return f"KboOpenData_{self.key.number:04d}_{self.timestamp:%Y_%m_%d}_{kind}.zip"


@functools.lru_cache(maxsize=4096)  # a status asks for hundreds, again and again
def key_or_none(text: str) -> ExtractKey | None:
    """The extract that a text is the key of; None for a text that is none."""
    try:
        return ExtractKey.parse(text)
    except ExtractError:
        return None


def key_in_file_name(name: str) -> ExtractKey | None:
    """The extract that a file name in KBO's style names; None for any other name."""
    match = _FILE_NAME.fullmatch(name)
    if match is None or int(match["number"]) == 0:
        return None
    return ExtractKey(int(match["number"]), cast(ExtractType, match["type"].lower()))


def zips_in(directory: Path) -> list[tuple[ExtractKey, Path]]:
    """The ZIPs in a directory, which may be absent, that have KBO's names in any case, by name."""
    if not directory.is_dir():
        return []
    named = ((key_in_file_name(file.name), file) for file in sorted(directory.iterdir()))
    return [(key, file) for key, file in named if key is not None]


def odd_day(extract: Extract) -> str | None:
    """What is odd in the day in a ZIP's name; None when nothing is, or the name is not KBO's.

    KBO names a ZIP after the day, or formerly the month, on which it published it. That is the day
    on which it was made, or the next; over a weekend it can be later.
    """
    match = _FILE_NAME.fullmatch(extract.source_file)
    if match is None:
        return None
    named, day = match["date"], extract.timestamp.date()
    form = "%Y_%m_%d" if len(named) > len("yyyy_mm") else "%Y_%m"
    near = (day + datetime.timedelta(days=shift) for shift in (-1, 0, 1))
    if named in {f"{other:{form}}" for other in near}:
        return None
    return f"made on {day:%d-%m-%Y}, as meta.csv says; the file name says {named}"


@dataclass(frozen=True, slots=True, order=True)
class BatchKey:
    """Names one batch of an extract; as text `0141-update-0001`, the key of its partition.

    The order is that of their extracts, and of the batches in them.
    """

    extract: ExtractKey
    number: int

    @classmethod
    def parse(cls, text: str) -> "BatchKey":
        """Reads a key such as `0141-update-0001`.

        Raises:
            ExtractError: the text is no key, or not the one way to write it.
        """
        match = _BATCH_KEY.fullmatch(text)
        if match:
            key = cls(ExtractKey.parse(match[1]), int(match[2]))
            if key.number > 0 and str(key) == text:
                return key
        raise ExtractError(f"{text[:80]!r} is not a batch; expected a key such as 0141-update-0001")

    def __str__(self) -> str:
        return f"{self.extract}-{self.number:04d}"


@dataclass(frozen=True, slots=True)
class Batch:
    """A range of the axis of entity numbers. All ranges of an extract together cover the axis.

    Attributes:
        number: from 1.
        first_number: first entity number in it; None: from the beginning of the axis.
        next_number: first entity number after it; None: to the end of the axis.
    """

    number: int
    first_number: str | None
    next_number: str | None


def batch_target(records: int, batch_rows: int, max_batches: int) -> int:
    """Rows after which a batch is closed, so that there are `max_batches` at most."""
    return max(batch_rows, -(-records // max_batches))


def next_to_apply(
    staged: Collection[ExtractKey], published: ExtractKey | None
) -> ExtractKey | None:
    """The staged extract that follows what is published; None when none does."""
    for key in sorted(staged):
        try:
            check_order(key, published)
        except OrderError:
            continue
        return key
    return None


def import_order(keys: Collection[ExtractKey], published: ExtractKey | None) -> list[ExtractKey]:
    """Puts extracts that are all to be imported in order.

    Of a Full and an Update of one number, the Full comes first where only it follows what was
    imported before; the other one has nothing left to do then.
    """
    ordered: list[ExtractKey] = []
    for _, group in groupby(sorted(keys), key=lambda key: key.number):
        same = list(group)
        first = next_to_apply(same, published)
        if first is not None:
            same.remove(first)
            same.insert(0, first)
            published = first
        ordered += same
    return ordered


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be imported of what is on offer.

    Attributes:
        due: extracts, in the order in which they are imported.
        reason: why these, in one line.
        gap: what is missing, where neither the needed extract nor a Full above it is at hand.
    """

    due: tuple[ExtractKey, ...]
    reason: str
    gap: str | None = None


def plan_imports(
    offered: Collection[ExtractKey],
    published: ExtractKey | None,
    unusable: Collection[ExtractKey] = (),
    rolled_back: Collection[ExtractKey] = (),
) -> Plan:
    """Plans the way from what is published to the newest extract on offer.

    An Update costs little, so Updates come in order as long as each is there. Where one is not,
    expired or never made, the newest Full above goes in its place, and the Updates after it.

    Args:
        offered: extracts on offer, in any order.
        published: the newest published extract; None when the register is empty.
        unusable: extracts that count as not there, though they may be on offer.
        rolled_back: extracts that a person has undone: none of their numbers is imported before a
            person asks for it, but a Full above them all may take their place.
    """
    number = published.number if published else 0
    undone = {key.number: key for key in rolled_back if key.number > number}
    usable = {key for key in {*offered} - {*unusable} if key.number not in undone}
    last_undone = max(undone, default=0)
    fulls = sorted(key.number for key in usable if key.type == "full" and key.number > last_undone)
    updates = {key.number for key in usable if key.type == "update"}
    newest = max((last_undone, *(key.number for key in offered)))
    if published is None and not fulls and not undone:
        return Plan(
            (), "the register is empty and no Full is at hand", gap="a Full" if offered else None
        )

    def absence(key: ExtractKey) -> str:
        if key.number in undone:
            return f"{undone[key.number]} was rolled back"
        return f"{key} {'failed too often' if key in unusable else 'is not on offer'}"

    due: list[ExtractKey] = []
    bridges: list[str] = []
    while number < newest:
        following = ExtractKey(number + 1, "update")
        waiting = [undone[n] for n in sorted(undone) if n > number]
        if (due or published) and following.number in updates:
            due.append(following)
        elif fulls and fulls[-1] > number:
            due.append(ExtractKey(fulls[-1], "full"))
            missing = absence(following) if number else "the register is empty"
            bridges.append(f"{missing}: {due[-1]} takes its place")
        elif waiting:
            reason = f"{waiting[0]} was rolled back; kbo retry {waiting[0]} imports it again"
            return Plan(tuple(due), "; ".join([*bridges, reason]))
        else:
            reason = f"{absence(following)}, and there is no Full above it"
            return Plan(tuple(due), "; ".join([*bridges, reason]), gap=str(following))
        number = due[-1].number
    if not due:
        return Plan((), f"{published} is the newest: nothing to do")
    return Plan(tuple(due), "; ".join(bridges) or f"follows {published}")


def check_order(key: ExtractKey, published: ExtractKey | None) -> None:
    """Makes sure that an extract may be applied after what is published.

    Raises:
        OrderError: names the extract that is expected.
    """
    if published is None:
        if key.type == "update":
            raise OrderError(f"{key}: the register is empty; import a Full first")
    elif key.number <= published.number:
        why = "what it brings is in the register"
        if key.type == "full":
            why = "an older Full is not taken; kbo rollback is the way back"
        raise OrderError(f"{key}: {published} is published; {why}")
    elif key.type == "update" and key.number != published.number + 1:
        expected = ExtractKey(published.number + 1, "update")
        raise OrderError(
            f"{key}: {published} is published; {expected} is expected, or a Full above it"
        )


@dataclass(frozen=True, slots=True)
class PublishedState:
    """What a register says of its extracts.

    Attributes:
        published: the published extracts and the sha256 of their ZIPs, the newest first.
        rolled_back: the extracts that were rolled back and not imported since.
        published_at: when the newest one was completed; None when there is none.
    """

    published: tuple[tuple[ExtractKey, str], ...] = ()
    rolled_back: frozenset[ExtractKey] = frozenset()
    published_at: datetime.datetime | None = None

    @property
    def newest(self) -> ExtractKey | None:
        """The newest published extract; None when there is none."""
        return self.published[0][0] if self.published else None

    def at(self, number: int) -> ExtractKey | None:
        """The published extract of a number; None when there is none."""
        return next((key for key, _ in self.published if key.number == number), None)

    def has(self, extract: Extract) -> bool:
        """Tells whether an extract is published, or another of its number, which is as good.

        Raises:
            OrderError: the register is past it, or has another file under its key.
        """
        for key, zip_hash in self.published:
            if key == extract.key and zip_hash != extract.sha256:
                raise OrderError(
                    f"{key}: published from another file (sha256 {zip_hash[:12]}, this one has"
                    f" {extract.sha256[:12]}); keep the one that is published"
                )
            if key.number == extract.key.number:
                return True  # a Full and an Update of one number lead to the same state
        if self.newest is not None and extract.key.number <= self.newest.number:
            check_order(extract.key, self.newest)
        return False


def read_published_state(connection: "duckdb.DuckDBPyConnection") -> PublishedState:
    """What the register that is the default database of the connection says of its extracts."""
    published = connection.execute(
        """
        SELECT extract_number, extract_type, sha256, completed_at
        FROM import_jobs
        WHERE status = 'completed'
        ORDER BY extract_number DESC, completed_at DESC
        """
    ).fetchall()
    rows = connection.execute(
        "SELECT extract_number, extract_type FROM import_jobs WHERE status = 'rolled_back'"
    ).fetchall()
    rolled_back = frozenset(ExtractKey(number, kind) for number, kind in rows)
    return PublishedState(
        tuple((ExtractKey(number, kind), zip_hash) for number, kind, zip_hash, _ in published),
        rolled_back,
        published[0][3] if published else None,
    )


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A published extract in the chain that the ledger forms.

    Attributes:
        key: the extract.
        sha256: of its ZIP.
        batches: in which it was applied.
        records: rows of the extract in them.
        hash: over its rows of the ledger and the hash of the extract published before it.
    """

    key: ExtractKey
    sha256: str
    batches: int
    records: int
    hash: str


def read_ledger_entries(connection: "duckdb.DuckDBPyConnection") -> tuple[LedgerEntry, ...]:
    """The chain of the register that is the default database, the first published extract first.

    Two registers with the same newest hash have applied the same batches with the same effect, in
    all extracts. Times and attempts are not in it.
    """
    from hashlib import sha256  # loads OpenSSL, for which kbo --help would wait

    rows = connection.execute(
        """
        SELECT j.extract_number, j.extract_type, j.sha256, j.total_batches,
            coalesce(sum(b.records_count), 0)::BIGINT,
            string_agg(concat_ws(' ', b.table_name, b.batch_number, b.operation, b.status,
            b.records_count, b.rows_closed, b.rows_opened, b.rows_unchanged, b.duplicates_dropped),
            ';' ORDER BY b.table_name, b.batch_number, b.operation)
        FROM import_jobs j
        LEFT JOIN import_job_batches b ON b.job_id = j.id
        WHERE j.status = 'completed'
        GROUP BY ALL
        ORDER BY j.extract_number
        """
    ).fetchall()
    chain: list[LedgerEntry] = []
    for number, kind, zip_hash, batches, records, applied in rows:
        key = ExtractKey(number, kind)
        before = chain[-1].hash if chain else ""
        text = f"{before} {key} {zip_hash} {applied}"
        chain.append(
            LedgerEntry(key, zip_hash, batches, records, sha256(text.encode()).hexdigest())
        )
    return tuple(chain)


def plan_rebuild(kept: Collection[ExtractKey], newest: ExtractKey | None) -> list[ExtractKey]:
    """The extracts from which a register is rebuilt, in order: as long a history as there is.

    Args:
        kept: the extracts whose ZIPs are there.
        newest: the newest published one; None when nobody knows it, for all that follow.

    Raises:
        NotReadyError: no line of ZIPs leads there; names one that is missing.
    """
    line: list[ExtractKey] = []
    for key in sorted(kept):
        if newest is not None and key.number > newest.number:
            break
        last = line[-1].number if line else None
        if key.number != last and (key.type == "full" or key.number - 1 == last):
            line.append(key)
    if not line:
        missing = str(newest) if newest is not None and newest.type == "full" else "a Full"
        raise NotReadyError(f"no ZIP of {missing} is kept to begin with; kbo fetch downloads one")
    if newest is not None and line[-1].number != newest.number:
        missing = str(ExtractKey(line[-1].number + 1, "update"))
        raise NotReadyError(
            f"{newest}: the kept ZIPs reach only to {line[-1]}; kbo fetch {missing}, or put"
            " that ZIP into downloads"
        )
    return line
