"""Verify: the register as it was at some number against the Full of that number.

Only the published file is read, so that an import at the same time is not disturbed. The tables
themselves are compared, so that nobody is left out.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb

from kbo_pipeline.apply.sql import differing_keys, incoming
from kbo_pipeline.core.database import Database, connect
from kbo_pipeline.core.disk_space import check_space_to_verify
from kbo_pipeline.core.errors import ExtractError, NotReadyError
from kbo_pipeline.core.extracts import Extract, ExtractKey, PublishedState
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import indented, listed, union_all
from kbo_pipeline.core.tables import ALL_TABLES, Table
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.read.published import open_published
from kbo_pipeline.stage.staged import open_staged
from kbo_pipeline.stage.staging import stage

SAMPLES = 10
"""The most rows of a difference that are shown."""

IN_ZIP, IN_REGISTER = "ZIP", "register"


@dataclass
class Drift:
    """How a table of the register differs from the Full.

    Attributes:
        rows_in_zip: different rows in the ZIP; a row that stands there twice counts once.
        rows_in_register: rows of the register at that number.
        only_in_zip, only_in_register: rows that the other one does not have.
        samples: some of these, by where they are.
    """

    rows_in_zip: int = 0
    rows_in_register: int = 0
    only_in_zip: int = 0
    only_in_register: int = 0
    samples: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows that are on one side only."""
        return self.only_in_zip + self.only_in_register


@dataclass(frozen=True, slots=True)
class Verification:
    """What comparing with a Full has found.

    Attributes:
        full: the Full.
        published: the extract of the same number that was published.
        tables: what was found, by table name, all eight.
        rejected_rows: records of the ZIP that are set aside, as an import does, and not compared.
    """

    full: ExtractKey
    published: ExtractKey
    tables: Mapping[str, Drift]
    rejected_rows: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether there is no difference at all."""
        return self.drift == 0

    @property
    def drift(self) -> int:
        """Rows that are on one side only, in all tables."""
        return sum(drift.rows for drift in self.tables.values())

    def __str__(self) -> str:
        rows = sum(drift.rows_in_zip for drift in self.tables.values())
        set_aside = f"; {self.rejected_rows:,} rows of the ZIP are set aside"
        set_aside = set_aside if self.rejected_rows else ""
        if self.is_equal:
            return f"{self.published}: equal to {self.full}, {rows:,} rows{set_aside}"
        differences = (
            f"{name} {drift.only_in_zip:,} only in the ZIP, {drift.only_in_register:,} only in the"
            " register"
            for name, drift in self.tables.items()
            if drift.rows
        )
        return f"{self.published}: differs from {self.full}: {'; '.join(differences)}{set_aside}"

    def to_json(self) -> dict[str, Any]:
        """What was found, for programs."""
        return {
            "full": str(self.full),
            "published": str(self.published),
            "equal": self.is_equal,
            "rejected_rows": self.rejected_rows,
            "tables": {
                name: {
                    **asdict(drift),
                    "samples": {
                        side: [[None if v is None else str(v) for v in row] for row in rows]
                        for side, rows in drift.samples.items()
                    },
                }
                for name, drift in self.tables.items()
            },
        }


def verify(
    settings: Settings,
    zip_file: Path,
    *,
    report: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Verification:
    """Compares the published register, as it was at the number of a Full, with that Full.

    The Full is staged aside, with all checks that an import makes of a ZIP. Changes nothing.

    Args:
        settings: say where everything is.
        zip_file: the Full.
        report: takes the name of the table at work, how many steps are done, and of how many.

    Raises:
        ExtractError: the ZIP is an Update, or none.
        RejectedError: its files do not hold what KBO publishes.
        NotReadyError: nothing of its number is published.
        RegisterError: the published file is no register.
        StorageError: another verification is at work, or there is no room.
    """
    extract = read_extract(zip_file)
    if extract.key.type != "full":
        raise ExtractError(f"{extract.key}: only a Full holds whole tables; name a Full")
    directory = settings.work_dir / "verifying"
    with exclusive_lock(settings.work_dir / "verifying.lock"):
        with (
            connect(settings) as connection,
            open_published(connection, settings.database) as state,
        ):
            _same_number(state, extract.key)  # before the work
        check_space_to_verify(zip_file, directory)
        shutil.rmtree(directory, ignore_errors=True)  # of one that was killed
        try:
            with connect(settings) as connection:
                stage(
                    connection,
                    replace(settings, batch_rows=1, max_batches=1),
                    zip_file,
                    extract,
                    directory,
                    max_faulty_rows=None,  # nothing is written: what is left is compared
                )
            with connect(settings) as connection:
                return _compare(connection, settings, extract, directory, report)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _same_number(state: PublishedState, key: ExtractKey) -> ExtractKey:
    published = state.at(key.number)
    if published is None:
        known = ", ".join(str(other.number) for other, _ in state.published[:5]) or "none"
        raise NotReadyError(
            f"{key}: no extract of number {key.number} is published (the newest: {known}); name a"
            " Full of one that is"
        )
    return published


def _compare(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    extract: Extract,
    directory: Path,
    report: Callable[[str, int, int], None],
) -> Verification:
    with (
        open_published(connection, settings.database) as state,
        open_staged(connection, directory, extract.key) as staged,
    ):
        published = _same_number(state, extract.key)
        tables = {}
        for done, table in enumerate(ALL_TABLES):
            report(table.name, done, len(ALL_TABLES))
            tables[table.name] = _drift(Database(connection), extract.key, table)
    return Verification(extract.key, published, tables, staged.rejected_rows)


def _drift(database: Database, key: ExtractKey, table: Table) -> Drift:
    number = {"number": key.number}
    ((in_zip, in_register),) = database.execute(_count_rows(table), **number).fetchall()
    for statement in _find_drift(table):
        database.execute(statement, **number)
    ((only_in_zip, only_in_register),) = database.execute(_COUNT_DRIFT).fetchall()
    samples = {
        side: database.execute(
            _sample_drift(table, is_in_zip=side == IN_ZIP), most=SAMPLES
        ).fetchall()
        for side, rows in ((IN_ZIP, only_in_zip), (IN_REGISTER, only_in_register))
        if rows
    }
    return Drift(in_zip, in_register, int(only_in_zip), int(only_in_register), samples)


def _count_rows(table: Table) -> str:
    """Counts the rows of the Full, each once, and those of the register; binds `$number`."""
    return f"""SELECT
    (SELECT count(*) FROM ({indented(incoming(table, "full"))})),
    (SELECT count(*) FROM ({indented(_state(table))}))"""


def _find_drift(table: Table) -> tuple[str, ...]:
    """Makes `drift`: the rows that are not equally often in both; binds `$number`.

    Its last column, `surplus`, says how many times more a row is in the Full; it is negative for a
    row of the register. Only the rows of keys whose hashes differ are compared, so that this is
    quick where there is little drift.
    """
    new, old = incoming(table, "full"), _state(table)
    columns = listed(table.column_names)
    rows = union_all(
        f"""SELECT {columns}, {times} AS times
FROM (
    {indented(query)}
)
WHERE {table.key} IN (SELECT key FROM temp.keys)"""
        for query, times in ((new, 1), (old, -1))
    )
    return (
        f"CREATE OR REPLACE TEMP TABLE keys AS\n{differing_keys(table, new, old)}",
        f"""CREATE OR REPLACE TEMP TABLE drift AS
SELECT {columns}, sum(times) AS surplus
FROM (
    {indented(rows)}
)
GROUP BY ALL
HAVING sum(times) <> 0""",
    )


def _state(table: Table) -> str:
    return f"""SELECT {listed(table.column_names)}
FROM main.{table.name}
WHERE _extract_number <= $number
    AND (_deleted_at_extract IS NULL OR _deleted_at_extract > $number)"""


_COUNT_DRIFT = """
SELECT coalesce(sum(surplus) FILTER (surplus > 0), 0),
    coalesce(-sum(surplus) FILTER (surplus < 0), 0)
FROM temp.drift
"""
"""Counts what only the Full has, and what only the register has."""


def _sample_drift(table: Table, *, is_in_zip: bool) -> str:
    """The first rows, `$most` at most, that only the Full has, or only the register."""
    return f"""SELECT {listed(table.column_names)}
FROM temp.drift
WHERE surplus {">" if is_in_zip else "<"} 0
ORDER BY ALL
LIMIT $most"""
