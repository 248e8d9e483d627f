"""Keeping a DuckLake small and quick: fewer files, no old snapshots. No Dagster."""

from dataclasses import dataclass

import duckdb

from kbo_pipeline.core.lake import attach_to_write, detach
from kbo_pipeline.core.places import Lake

KEEP_DAYS = 7
"""How long a reader may stay with the snapshot that it has opened."""

_REGISTER = "register"

# In this order: what one leaves behind, a later one removes.
_STEPS = (
    ("inlined_flushed", f"CALL ducklake_flush_inlined_data('{_REGISTER}')"),
    ("files_rewritten", f"CALL ducklake_rewrite_data_files('{_REGISTER}')"),
    ("files_merged", f"CALL ducklake_merge_adjacent_files('{_REGISTER}')"),
    ("snapshots_expired", f"CALL ducklake_expire_snapshots('{_REGISTER}', older_than => {{then}})"),
    ("files_removed", f"CALL ducklake_cleanup_old_files('{_REGISTER}', older_than => {{then}})"),
    (
        "orphans_removed",
        f"CALL ducklake_delete_orphaned_files('{_REGISTER}', older_than => {{then}})",
    ),
)


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compacting did.

    Attributes:
        counts: by step, how many lines DuckLake has answered: tables, snapshots or files.
        files: data files of the register afterwards.
        bytes: their length.
    """

    counts: dict[str, int]
    files: int
    bytes: int


def compact(
    connection: duckdb.DuckDBPyConnection, place: Lake, *, keep_days: int = KEEP_DAYS
) -> Compaction:
    """Makes a lake small; what readers see stays as it is.

    Whoever reads a snapshot that is older than `keep_days` has to open the register again. Files of
    killed writers go too, once they are as old. Another writer may be at work meanwhile: one of
    both is tried again.

    Args:
        connection: an in-memory DuckDB.
        place: the lake.
        keep_days: see above; 0 and more.

    Raises:
        StorageError: it does not answer.
        duckdb.TransactionException: another writer has committed first.
    """
    then = f"now() - INTERVAL {int(keep_days)} DAY"
    name = attach_to_write(connection, place, _REGISTER)
    try:
        counts = {
            step: len(connection.execute(statement.format(then=then)).fetchall())
            for step, statement in _STEPS
        }
        ((files, length),) = connection.execute(
            "SELECT sum(file_count)::BIGINT, sum(file_size_bytes)::BIGINT"
            f" FROM ducklake_table_info('{_REGISTER}')"
        ).fetchall()
    finally:
        detach(connection, name)
    return Compaction(counts, files or 0, length or 0)
