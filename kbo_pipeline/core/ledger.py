"""What a register says of its extracts: which are published, which rolled back. Read only."""

from dataclasses import dataclass
from hashlib import sha256

import duckdb

from kbo_pipeline.core.extracts import ExtractKey


def published_extracts(connection: duckdb.DuckDBPyConnection) -> list[tuple[ExtractKey, str]]:
    """The published extracts and the sha256 of their ZIPs, the newest first.

    The register must be the default database of the connection.
    """
    rows = connection.execute(
        "SELECT extract_number, extract_type, sha256 FROM import_jobs WHERE status = 'completed'"
        " ORDER BY extract_number DESC, completed_at DESC"
    ).fetchall()
    return [(ExtractKey(number, kind), sha256) for number, kind, sha256 in rows]


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


def read_published_state(connection: duckdb.DuckDBPyConnection) -> PublishedState:
    """What the register that is the default database of the connection says of its extracts."""
    rows = connection.execute(
        "SELECT extract_number, extract_type FROM import_jobs WHERE status = 'rolled_back'"
    ).fetchall()
    rolled_back = frozenset(ExtractKey(number, kind) for number, kind in rows)
    return PublishedState(tuple(published_extracts(connection)), rolled_back)


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
        "SELECT j.extract_number, j.extract_type, j.sha256, j.total_batches,"
        " coalesce(sum(b.records_count), 0)::BIGINT,"
        " string_agg(concat_ws(' ', b.table_name, b.batch_number, b.operation, b.status,"
        " b.records_count, b.rows_closed, b.rows_opened, b.rows_unchanged, b.duplicates_dropped),"
        " ';' ORDER BY b.table_name, b.batch_number, b.operation)"
        " FROM import_jobs j LEFT JOIN import_job_batches b ON b.job_id = j.id"
        " WHERE j.status = 'completed' GROUP BY ALL ORDER BY j.extract_number"
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
