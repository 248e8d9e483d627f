"""What a register says of its extracts: which are published, which rolled back. Read only.

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

from dataclasses import dataclass
from hashlib import sha256

import duckdb

from kbo_pipeline.core.errors import OrderError
from kbo_pipeline.core.extracts import Extract, ExtractKey, check_order


@dataclass(frozen=True, slots=True)
class PublishedState:
    """What a register says of its extracts.

    Attributes:
        published: the published extracts and the sha256 of their ZIPs, the newest first.
        rolled_back: the extracts that were rolled back and not imported since.
    """

    published: tuple[tuple[ExtractKey, str], ...] = ()
    rolled_back: frozenset[ExtractKey] = frozenset()

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


def read_published_state(connection: duckdb.DuckDBPyConnection) -> PublishedState:
    """What the register that is the default database of the connection says of its extracts."""
    published = connection.execute(
        """
        SELECT extract_number, extract_type, sha256
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
        tuple((ExtractKey(number, kind), zip_hash) for number, kind, zip_hash in published),
        rolled_back,
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


def read_ledger_entries(connection: duckdb.DuckDBPyConnection) -> tuple[LedgerEntry, ...]:
    """The chain of the register that is the default database, the first published extract first.

    Two registers with the same newest hash have applied the same batches with the same effect, in
    all extracts. Times and attempts are not in it.
    """
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
