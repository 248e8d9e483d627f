"""Verify: the register as it was at some number against the Full of that number.

What was found is kept as a proof: in the table `proof` of the register, which readers get with it,
and as a file that can be signed. Nothing else is changed, whatever was found.

Only the published file is read, so that an import at the same time is not disturbed. The tables
themselves are compared, so that nobody is left out.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import duckdb

from kbo_pipeline.apply import sql as register_sql
from kbo_pipeline.apply.register import Register, open_register_to_copy
from kbo_pipeline.apply.sql import differing_keys, incoming
from kbo_pipeline.core.database import Database, connect
from kbo_pipeline.core.disk_space import check_space_to_verify
from kbo_pipeline.core.errors import ExtractError, NotReadyError, SettingsError
from kbo_pipeline.core.extracts import (
    Extract,
    ExtractKey,
    PublishedState,
    plan_rebuild,
    zips_in,
)
from kbo_pipeline.core.files import exclusive_lock, make_private, replace_atomically
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import indented, listed, union_all
from kbo_pipeline.core.tables import ALL_TABLES, Table
from kbo_pipeline.core.text import first_line
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.fetch.zips import full_to_compare, keep_zip
from kbo_pipeline.publish.copy import show_to_readers
from kbo_pipeline.read.published import hash_of_state, open_published, published_state_of
from kbo_pipeline.read.state_sql import state_at, state_now
from kbo_pipeline.stage.fingerprint import Fingerprint, fingerprints_of_full, read_fingerprint
from kbo_pipeline.stage.staged import open_staged
from kbo_pipeline.stage.staging import stage

PROOF_FORMAT = "kbo_pipeline proof 1"

NAMESPACE = "kbo-proof"
"""What a signature is for, as `ssh-keygen -Y verify` asks."""

_WAIT = 900.0
"""Seconds to wait for the register: an import may be at work."""

_READINGS = 3
"""How often each table is read at most: in the CSV file, in the register, and both compared."""

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
        verified_at: when.
        full_sha256: of the ZIP.
        content_hash: of all rows of the register at that number (`hash_of_state`).
        rejected_rows: records of the ZIP that are set aside, as an import does, and not compared.
    """

    full: ExtractKey
    published: ExtractKey
    tables: Mapping[str, Drift]
    verified_at: datetime
    full_sha256: str
    content_hash: str
    rejected_rows: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether there is no difference at all."""
        return self.drift == 0

    @property
    def rows(self) -> int:
        """Rows of the ZIP that were compared, in all tables."""
        return sum(drift.rows_in_zip for drift in self.tables.values())

    @property
    def drift(self) -> int:
        """Rows that are on one side only, in all tables."""
        return sum(drift.rows for drift in self.tables.values())

    def __str__(self) -> str:
        set_aside = f"; {self.rejected_rows:,} rows of the ZIP are set aside"
        set_aside = set_aside if self.rejected_rows else ""
        if self.is_equal:
            return f"{self.published}: equal to {self.full}, {self.rows:,} rows{set_aside}"
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
            "verified_at": self.verified_at.isoformat(timespec="seconds"),
            "rows_compared": self.rows,
            "rows_differing": self.drift,
            "full_sha256": self.full_sha256,
            "content_hash": self.content_hash,
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

    The CSV files are read once, and hashed; a Full is staged, with all checks that an import makes
    of a ZIP, only where that does not show that both are equal. Changes nothing.

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
    done = count()

    def report_table(table: Table) -> None:
        report(table.name, next(done), _READINGS * len(ALL_TABLES))

    with exclusive_lock(settings.work_dir / "verifying.lock"):
        with (
            connect(settings) as connection,
            open_published(connection, settings.database) as state,
        ):
            _same_number(state, extract.key)  # before the work
        check_space_to_verify(zip_file, directory)
        shutil.rmtree(directory, ignore_errors=True)  # of one that was killed
        try:
            make_private(directory)
            with connect(settings) as connection:
                full = fingerprints_of_full(connection, zip_file, extract, directory, report_table)
            with connect(settings) as connection:
                found = full and _show_equal(connection, settings, extract, full, report_table)
            if found:
                return found
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
                return _compare(connection, settings, extract, directory, report_table)
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


def _show_equal(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    extract: Extract,
    full: Mapping[Table, Fingerprint],
    report: Callable[[Table], None],
) -> Verification | None:
    """What was found where all tables have the fingerprints of the Full; None where one has not."""
    with open_published(connection, settings.database) as state:
        published = _same_number(state, extract.key)
        tables = {}
        for table in ALL_TABLES:
            report(table)
            rows = _rows_of(table, state, published)
            found = read_fingerprint(connection, table, rows, extract.key.number)
            if found != full.get(table):
                return None
            tables[table.name] = Drift(found.rows, found.rows)
        return _verification(connection, extract, published, tables)


def _compare(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    extract: Extract,
    directory: Path,
    report: Callable[[Table], None],
) -> Verification:
    with (
        open_published(connection, settings.database) as state,
        open_staged(connection, directory, extract.key) as staged,
    ):
        published = _same_number(state, extract.key)
        tables = {}
        for table in ALL_TABLES:
            report(table)
            rows = _rows_of(table, state, published)
            tables[table.name] = _drift(Database(connection), extract.key, table, rows)
        return _verification(connection, extract, published, tables, staged.rejected_rows)


def _rows_of(table: Table, state: PublishedState, published: ExtractKey) -> str:
    return state_now(table) if published == state.newest else state_at(table)


def _verification(
    connection: duckdb.DuckDBPyConnection,
    extract: Extract,
    published: ExtractKey,
    tables: Mapping[str, Drift],
    rejected_rows: int = 0,
) -> Verification:
    return Verification(
        full=extract.key,
        published=published,
        tables=tables,
        verified_at=datetime.now(UTC),
        full_sha256=extract.sha256,
        content_hash=hash_of_state(connection, extract.key.number),
        rejected_rows=rejected_rows,
    )


def _drift(database: Database, key: ExtractKey, table: Table, old: str) -> Drift:
    """What differs between the staged Full and a query for the rows of the register."""
    number = {"number": key.number}
    ((in_zip, in_register),) = database.execute(_count_rows(table, old), **number).fetchall()
    for statement in _find_drift(table, old):
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


def _count_rows(table: Table, old: str) -> str:
    """Counts the rows of the Full, each once, and those of the register; binds `$number`."""
    return f"""SELECT
    (SELECT count(*) FROM ({indented(incoming(table, "full"))})),
    (SELECT count(*) FROM ({indented(old)}))"""


def _find_drift(table: Table, old: str) -> tuple[str, ...]:
    """Makes `drift`: the rows that are not equally often in both; binds `$number`.

    Its last column, `surplus`, says how many times more a row is in the Full; it is negative for a
    row of the register. Only the rows of keys whose hashes differ are compared, so that this is
    quick where there is little drift.
    """
    new = incoming(table, "full")
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


def record_proof(
    connection: duckdb.DuckDBPyConnection, settings: Settings, verification: Verification
) -> Path:
    """Keeps what a comparison has found, in place of what an earlier one of that number found.

    Readers of a file get it at once where both are equal and no extract is half applied; otherwise
    with the next publication. Where there is only a published file, and no register at work, it is
    kept as a file alone.

    Args:
        connection: an in-memory DuckDB.
        settings: say where everything is, and with which key to sign.
        verification: what was found.

    Returns:
        The file, which has its signature beside it, if a key is set.

    Raises:
        NotReadyError: the extract was rolled back meanwhile; nothing is kept.
        SettingsError: it cannot be signed; everything else is done.
        StorageError: another process keeps the register.
    """
    key = verification.published

    def write(register: Register) -> None:
        if register.ledger.published_state().at(key.number) != key:
            raise NotReadyError(f"{key}: rolled back meanwhile; kbo verify compares what is now")
        number = {"number": key.number}
        register.database.execute(register_sql.FORGET_PROOF, **number)
        register.database.execute(
            register_sql.KEEP_PROOF,
            **number,
            verified_at=verification.verified_at,
            is_equal=verification.is_equal,
            rows_compared=verification.rows,
            rows_differing=verification.drift,
            full_sha256=verification.full_sha256,
            content_hash=verification.content_hash,
        )

    if not settings.register.may_exist:
        return _write_file(settings, verification)
    with open_register_to_copy(connection, settings.register, lock_timeout=_WAIT) as attach:
        with attach() as register:
            register.database.commit(lambda: write(register))
            register.checkpoint()
            at_work = register.ledger.published_state()
            is_whole = register.ledger.half_applied() is None
        file, database = settings.register.file, settings.database.file
        is_shown = published_state_of(settings.database, connection) == at_work
        if file and database and verification.is_equal and is_whole and is_shown:
            show_to_readers(file, database, settings.privacy)
    return _write_file(settings, verification)


def _write_file(settings: Settings, verification: Verification) -> Path:
    file = _file_of(settings, verification.published.number)
    content: dict[str, Any] = {"format": PROOF_FORMAT} | verification.to_json()
    with replace_atomically(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _signature_of(file).unlink(missing_ok=True)  # it is of another content
    if settings.signing_key is not None:
        _sign(settings.signing_key, file)
    return file


def _file_of(settings: Settings, number: int) -> Path:
    return settings.proofs_dir / f"{number:04d}.json"


def _signature_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sig")


def _sign(key: Path, file: Path) -> None:
    """Writes the signature of a file beside it; asks nobody for a passphrase."""
    try:
        done = subprocess.run(
            ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        problem = first_line(done.stderr or "failed") if done.returncode else None
    except FileNotFoundError:
        problem = "there is no ssh-keygen; install OpenSSH"
    if problem is not None:
        raise SettingsError(f"KBO_SIGNING_KEY: {file} is written, but not signed: {problem}")


def prove(
    settings: Settings,
    number: int,
    *,
    zip_file: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    report_tables: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Verification:
    """Compares the register at a number with the Full of that number, and keeps what it found.

    A Full that is fetched for it is removed afterwards, unless the register could not be made again
    without it.

    Args:
        settings: say where everything is, and how the portal is asked.
        number: of a published extract.
        zip_file: the Full; None for the one in the downloads directory or at the portal.
        report: takes a line about the download.
        report_tables: takes what `verify` reports.

    Raises:
        NotReadyError: nothing of that number is published, or its Full is nowhere to be had.
        KboError: whatever `verify` and `record_proof` raise.
    """
    with ExitStack() as kept:
        file = zip_file or kept.enter_context(full_to_compare(settings, number, report))
        result = verify(settings, file, report=report_tables)
        with connect(settings) as connection:
            record_proof(connection, settings, result)
        others = {key for key, _ in zips_in(settings.downloads_dir)}
        if zip_file is None and result.full not in others:
            try:
                plan_rebuild(others, result.published)
            except NotReadyError:
                keep_zip(settings, result.full, file)
    return result
