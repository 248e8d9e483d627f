"""Fingerprints of the tables of a Full, read from its CSV files without staging them.

Staging writes each row, to be read several times. Whoever only asks whether a register holds the
same rows reads them once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from kbo_pipeline.core.database import lock_down
from kbo_pipeline.core.extracts import Extract
from kbo_pipeline.core.sql import glob_escaped
from kbo_pipeline.core.tables import Table
from kbo_pipeline.stage import sql as staging_sql
from kbo_pipeline.stage.unpack import unpack


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The rows of a table, in any order; other rows have the same one in one case of 2^64.

    Attributes:
        rows: how many.
        row_hash: the sum of their hashes.
    """

    rows: int
    row_hash: int


def read_fingerprint(
    connection: duckdb.DuckDBPyConnection, table: Table, rows: str, number: int
) -> Fingerprint:
    """The fingerprint of the rows of a query on a table, which binds `$number`."""
    statement = staging_sql.fingerprint(table, rows)
    ((count, row_hash),) = connection.execute(statement, {"number": number}).fetchall()
    return Fingerprint(count, int(row_hash))


def fingerprints_of_full(
    connection: duckdb.DuckDBPyConnection,
    zip_file: Path,
    extract: Extract,
    directory: Path,
    report: Callable[[Table], None] = lambda table: None,
) -> Mapping[Table, Fingerprint] | None:
    """The fingerprints of the different rows of each table of a Full.

    Args:
        connection: an in-memory DuckDB; it can be used for nothing else afterwards.
        zip_file: the ZIP.
        extract: what the ZIP is: a Full.
        directory: where the CSV files go; the caller removes it.
        report: takes the table that is read now.

    Returns:
        None where a file is not as KBO publishes it: only staging tells what is to be done with it.

    Raises:
        ExtractError: the ZIP is not sound.
    """
    lock_down(connection, directory)
    unpacked = unpack(zip_file, extract, directory)
    if unpacked.faults or not all(file.is_regular for file in unpacked.files.values()):
        return None
    fingerprints = {}
    for (table, _), file in unpacked.files.items():
        report(table)
        statement = staging_sql.fingerprint_of_csv(table, file.header.columns)
        try:
            ((rows, row_hash, records),) = connection.execute(
                statement, {"insert": glob_escaped(file.path)}
            ).fetchall()
        except (duckdb.InvalidInputException, duckdb.ConversionException):
            return None
        if records != file.rows:
            return None
        fingerprints[table] = Fingerprint(rows, int(row_hash))
    return fingerprints
