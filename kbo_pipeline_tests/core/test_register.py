"""Applying and publishing: once, in order, whole, and never over a file that is not ours."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kbo_pipeline.apply.ledger import BatchChange
from kbo_pipeline.apply.register import open_register_to_write
from kbo_pipeline.commands.demo import damage
from kbo_pipeline.core.database import is_transient
from kbo_pipeline.core.errors import (
    KboError,
    NotReadyError,
    OrderError,
    RegisterError,
    StorageError,
)
from kbo_pipeline.core.extracts import ExtractKey, check_order
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.tables import CODE, TABLES
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.read.published import content_hash, published_state_of
from kbo_pipeline.stage.staged import staging_file
from kbo_pipeline_tests.support.core import Core, current_rows, rows_of, sorted_rows
from kbo_pipeline_tests.support.history import DELETES, FIRST, FULL, NUMBERS, SECOND, UPDATE
from kbo_pipeline_tests.support.zips import Row, rows_for, write_extract


@pytest.fixture
def core(tmp_path: Path) -> Core:
    """A data directory in which `FIRST` makes four batches."""
    return Core(tmp_path / "core", batch_rows=13)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write_extract(tmp_path, FULL, FIRST)


@pytest.fixture
def update(tmp_path: Path) -> Path:
    return write_extract(tmp_path, UPDATE, SECOND, DELETES)


@dataclass(frozen=True)
class Direct:
    """What comes of an import without any trouble.

    Attributes:
        directory: the data directory after the Full.
        hashes: what the published register holds after the Full and after the Update.
    """

    directory: Path
    hashes: dict[ExtractKey, str]


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Direct:
    """The Full and the Update, imported once for all tests."""
    directory = tmp_path_factory.mktemp("direct")
    core = Core(directory / "core", batch_rows=10_000)
    hashes = {}
    core.import_zip(write_extract(directory, FULL, FIRST))
    hashes[FULL] = core.content_hash()
    after_full = shutil.copytree(core.directory, directory / "after the Full")
    core.import_zip(write_extract(directory, UPDATE, SECOND, DELETES))
    hashes[UPDATE] = core.content_hash()
    return Direct(after_full, hashes)


@pytest.fixture
def published(core: Core, direct: Direct, tmp_path: Path) -> Core:
    """The data directory after the Full."""
    take_full(core, direct, tmp_path)
    return core


def take_full(core: Core, direct: Direct, directory: Path) -> None:
    """Makes a data directory what it is after the Full."""
    if core.shared is None:
        shutil.copytree(direct.directory, core.directory)
    else:  # nothing of it lies in a directory
        core.import_zip(write_extract(directory, FULL, FIRST))


def other_file(directory: Path, key: ExtractKey) -> Path:
    """A ZIP with the key and the name of another one, but other rows."""
    folder = directory / "other"
    folder.mkdir()
    return write_extract(folder, key, rows_for(NUMBERS[:3], "other"))


def apply_some(core: Core, key: ExtractKey, numbers: list[int]) -> list[BatchChange]:
    """Applies these batches of a staged extract."""
    with core.applying(key) as (register, staged):
        return [register.apply(staged, staged.batches[number - 1]) for number in numbers]


def ledger(core: Core) -> list[tuple[Any, ...]]:
    """All rows of the ledger, and the hash of what the register holds."""
    with core.at_work() as connection:
        jobs = connection.execute("FROM import_jobs ORDER BY ALL").fetchall()
        batches = connection.execute("FROM import_job_batches ORDER BY ALL").fetchall()
        return [*jobs, *batches, (content_hash(connection),)]


@pytest.mark.parametrize(
    ("key", "published", "refusal"),
    [
        ("0140-full", None, None),
        ("0001-full", None, None),
        ("0140-update", None, "the register is empty; import a Full first"),
        ("0141-update", "0140-full", None),
        ("0141-update", "0140-update", None),
        ("0141-full", "0140-full", None),
        ("0190-full", "0140-update", None),
        ("10000-update", "9999-update", None),
        ("0140-full", "0140-full", "0140-full is published"),
        ("0140-full", "0140-update", "0140-update is published"),
        ("0140-update", "0140-full", "0140-full is published"),
        ("0139-full", "0140-full", "0140-full is published"),
        ("0139-update", "0140-full", "0140-full is published"),
        ("0142-update", "0140-full", "0141-update is expected"),
        ("0190-update", "0140-update", "0141-update is expected"),
        ("10001-update", "9999-full", "10000-update is expected"),
    ],
)
def test_an_extract_follows_or_is_refused_with_what_is_expected(
    key: str, published: str | None, refusal: str | None
) -> None:
    parsed = ExtractKey.parse(published) if published else None
    if refusal is None:
        check_order(ExtractKey.parse(key), parsed)
    else:
        with pytest.raises(OrderError) as caught:
            check_order(ExtractKey.parse(key), parsed)
        assert str(caught.value).startswith(f"{key}: ")
        assert refusal in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_the_same_extract_again_is_refused_and_changes_nothing(published: Core, full: Path) -> None:
    before = ledger(published)
    published.stage(full)
    with pytest.raises(OrderError, match="0140-full is published"):
        apply_some(published, FULL, [1])
    assert ledger(published) == before


def test_a_batch_applied_again_says_what_it_did_and_does_nothing(core: Core, full: Path) -> None:
    core.stage(full)
    (first,) = apply_some(core, FULL, [2])
    before = ledger(core)
    (again,) = apply_some(core, FULL, [2])
    assert not first.already_applied
    assert again.already_applied
    for name, change in again.tables.items():
        assert replace(change, seconds=0) == replace(first.tables[name], seconds=0)
    assert ledger(core)[-1] == before[-1]


def test_an_update_waits_while_another_extract_is_half_applied(
    published: Core, full: Path, update: Path, tmp_path: Path
) -> None:
    published.stage(write_extract(tmp_path, ExtractKey(141, "full"), SECOND))
    apply_some(published, ExtractKey(141, "full"), [1])
    before = ledger(published)
    published.stage(update)
    with pytest.raises(OrderError, match="0141-full is half applied; finish it first"):
        apply_some(published, UPDATE, [1])
    assert ledger(published) == before


@pytest.mark.file_only("a lake takes several")
def test_the_register_is_kept_by_one_process_at_a_time(core: Core) -> None:
    with (
        exclusive_lock(DuckDBFile(core.register_file).lock),
        duckdb.connect() as connection,
        pytest.raises(StorageError, match=r"process \d+ is at work here") as caught,
        open_register_to_write(connection, core.register, lock_timeout=0.1),
    ):
        pass
    assert is_transient(caught.value)


@pytest.mark.file_only("damage of a lake is PostgreSQL's to find")
@pytest.mark.parametrize("content", [b"", b"no database" * 1000], ids=["empty", "no database"])
def test_a_damaged_register_is_refused_for_good(core: Core, content: bytes) -> None:
    core.register_file.parent.mkdir(parents=True)
    core.register_file.write_bytes(content)
    with (
        duckdb.connect() as connection,
        pytest.raises(RegisterError, match="damaged") as caught,
        open_register_to_write(connection, core.register),
    ):
        pass
    assert not is_transient(caught.value)


def test_another_file_under_the_key_is_refused_once_batches_are_applied(
    core: Core, full: Path, tmp_path: Path, direct: Direct
) -> None:
    core.stage(full)
    apply_some(core, FULL, [1, 3])
    before = ledger(core)
    core.stage(other_file(tmp_path, FULL))
    with pytest.raises(RegisterError, match="another file with this key"):
        apply_some(core, FULL, [1])
    assert ledger(core) == before
    core.import_zip(full)
    assert core.content_hash() == direct.hashes[FULL]


def test_another_file_under_the_key_is_taken_before_any_batch_is_applied(
    core: Core, full: Path, tmp_path: Path
) -> None:
    other = other_file(tmp_path, FULL)
    core.stage(full)
    apply_some(core, FULL, [])
    core.import_zip(other)
    with core.read() as reader:
        for table in TABLES:
            expected = rows_for(NUMBERS[:3], "other")[table.name]
            assert current_rows(reader, table) == expected
        hashes = reader.execute("SELECT sha256 FROM import_jobs").fetchall()
    assert hashes == [(read_extract(other).sha256,)]


def test_another_file_under_a_published_key_is_refused(
    published: Core, full: Path, tmp_path: Path
) -> None:
    other = read_extract(other_file(tmp_path, FULL))
    state = published_state_of(published.readers)
    assert state.has(replace(other, key=UPDATE)) is False
    assert state.has(replace(other, sha256=state.published[0][1])) is True
    with pytest.raises(OrderError, match="published from another file"):
        state.has(other)


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [(FULL, 1, 21), (UPDATE, 21, 7)],
    ids=str,
)
def test_another_batch_size_in_the_middle_goes_on_to_the_same_register(
    key: ExtractKey,
    before: int,
    after: int,
    core: Core,
    full: Path,
    update: Path,
    direct: Direct,
    tmp_path: Path,
) -> None:
    if key == UPDATE:
        take_full(core, direct, tmp_path)
    zip_file = full if key == FULL else update
    core.batch_rows = before
    staged = core.stage(zip_file)
    apply_some(core, key, [batch.number for batch in staged.batches][::2])
    core.batch_rows = after
    publication = core.import_zip(zip_file)
    assert not publication.already_published
    assert core.content_hash() == direct.hashes[key]


UNIQUE = tuple(table for table in TABLES if table.unique_key)
ONE, TWO = (rows_for(NUMBERS[:2], mark) for mark in ("one", "two"))


def test_of_two_rows_for_a_unique_key_the_later_one_wins(core: Core, tmp_path: Path) -> None:
    rows = {t.name: [ONE[t.name][0], *TWO[t.name], ONE[t.name][1]] for t in TABLES}
    core.import_zip(write_extract(tmp_path, FULL, rows))
    with core.read() as reader:
        for table in TABLES:
            last_ones = [TWO[table.name][0], ONE[table.name][1]]
            expected = last_ones if table in UNIQUE else sorted_rows(rows[table.name])
            assert current_rows(reader, table) == expected
            assert rows_of(reader, table, f"main.{table.name}") == expected


def test_an_insert_without_a_delete_replaces_where_keys_are_unique_and_adds_elsewhere(
    core: Core, tmp_path: Path
) -> None:
    core.import_zip(write_extract(tmp_path, FULL, ONE))
    core.import_zip(write_extract(tmp_path, UPDATE, TWO))
    with core.read() as reader:
        for table in TABLES:
            one, two = ONE[table.name], TWO[table.name]
            changes = reader.execute(f"SELECT _change, * FROM {table.name}_changes(141)").fetchall()
            removed = [row[2:] for row in changes if row[0] == "removed"]
            added = [row[2:] for row in changes if row[0] == "added"]
            assert rows_of(reader, table, f"{table.name}_at(140)") == one
            assert sorted_rows(added) == two
            assert sorted_rows(removed) == (one if table in UNIQUE else [])
            assert current_rows(reader, table) == (
                two if table in UNIQUE else sorted_rows([*one, *two])
            )


def test_exact_duplicates_are_shown_once_and_counted(core: Core, tmp_path: Path) -> None:
    rows = {name: [*rows, rows[0]] for name, rows in FIRST.items()}
    core.stage(write_extract(tmp_path, FULL, rows))
    core.batch_rows = 10_000
    core.stage(write_extract(tmp_path, FULL, rows))
    (change,) = apply_some(core, FULL, [1])
    for table in TABLES:
        of_table = change.tables[table.name]
        assert (of_table.records, of_table.rows_opened) == (len(NUMBERS) + 1, len(NUMBERS))
        assert of_table.duplicates_dropped == 1
        assert (of_table.rows_closed, of_table.rows_unchanged) == (0, 0)
    core.publish(FULL)
    with core.read() as reader:
        for table in TABLES:
            assert current_rows(reader, table) == FIRST[table.name]


def test_the_code_table_is_replaced_whole_and_its_duplicates_counted(
    core: Core, tmp_path: Path
) -> None:
    old, kept, new = (("Status", code, "NL", None) for code in ("OLD", "KEPT", "NEW"))
    core.import_zip(write_extract(tmp_path, FULL, {"code": [old, kept]}))
    publication = core.import_zip(write_extract(tmp_path, UPDATE, {"code": [kept, new, new]}))
    change = publication.code
    assert (change.records, change.rows_closed, change.rows_opened) == (3, 1, 1)
    assert (change.rows_unchanged, change.duplicates_dropped) == (1, 1)
    assert publication.row_counts == {
        **{table.name: 0 for table in TABLES},
        "enterprise": 1,
        "code": 2,
    }
    with core.read() as reader:
        assert current_rows(reader, CODE) == sorted_rows([kept, new])


def test_names_are_resolved_for_entities_that_are_new_changed_or_renamed(
    core: Core, tmp_path: Path
) -> None:
    numbers = NUMBERS[:5]
    same, renamed, changed, traded, gone = numbers
    entities: dict[str, Row] = {n: (n, "AC", None, None, None, None, None) for n in numbers}
    names: list[Row] = [(n, "2", "001", f"name of {n}") for n in numbers]
    rows: dict[str, list[Row]] = {"enterprise": list(entities.values()), "denomination": names}
    publication = core.import_zip(write_extract(tmp_path, FULL, rows))
    assert publication.names_resolved == len(numbers)

    deletes = {"denomination": [renamed, traded], "enterprise": [changed, gone]}
    inserts: dict[str, list[Row]] = {
        "enterprise": [(changed, "AC", "010", None, None, None, None)],
        "denomination": [
            (renamed, "2", "001", "new name"),
            (traded, "2", "001", f"name of {traded}"),
            (traded, "2", "003", "commercial name"),
            ("2.000.000.339", "2", "001", "name of no entity"),
        ],
    }
    publication = core.import_zip(write_extract(tmp_path, UPDATE, inserts, deletes))
    assert publication.names_resolved == 2
    with core.read() as reader:
        found = reader.execute(
            'SELECT enterprise_number, primary_name FROM "current".enterprise ORDER BY ALL'
        ).fetchall()
        noted = reader.execute("SELECT id, names_resolved FROM import_jobs ORDER BY id").fetchall()
    unchanged = {n: f"name of {n}" for n in (same, changed, traded)}
    assert dict(found) == unchanged | {renamed: "new name"}
    assert noted == [("0140-full", 5), ("0141-update", 2)]


LEDGER = {
    "import_jobs": [
        *("id", "extract_number", "extract_type", "snapshot_date", "extract_timestamp"),
        *("source_file", "sha256", "status", "total_batches", "names_resolved", "error_message"),
        *("created_at", "started_at", "completed_at"),
    ],
    "import_job_batches": [
        *("job_id", "table_name", "batch_number", "operation", "status", "records_count"),
        *("attempts", "started_at", "completed_at", "error_message"),
    ],
}


def test_the_ledger_has_the_columns_that_are_public(published: Core) -> None:
    with published.read() as reader:
        for table, columns in LEDGER.items():
            found = [row[0] for row in reader.execute(f"DESCRIBE {table}").fetchall()]
            assert [name for name in found if name in columns] == columns


@pytest.mark.file_only("DuckLake has no keys; the write lock keeps what they would")
def test_the_ledger_has_unique_keys(published: Core) -> None:
    with published.read() as reader:
        keys = reader.execute(
            "SELECT table_name, constraint_column_names FROM duckdb_constraints()"
            " WHERE constraint_type = 'PRIMARY KEY' ORDER BY table_name"
        ).fetchall()
    assert keys == [
        ("import_job_batches", ["job_id", "table_name", "batch_number", "operation"]),
        ("import_jobs", ["id"]),
    ]


def test_the_ledger_adds_up_to_the_records_of_the_extract(published: Core, tmp_path: Path) -> None:
    again = {t.name: [*SECOND[t.name], SECOND[t.name][0], FIRST[t.name][1]] for t in TABLES}
    zip_file = write_extract(tmp_path, UPDATE, again, DELETES)
    published.import_zip(zip_file)
    extract = read_extract(zip_file)
    with published.read() as reader:
        job = reader.execute(
            "SELECT id, extract_number, extract_type, snapshot_date, extract_timestamp,"
            " source_file, sha256, status, error_message FROM import_jobs"
            " WHERE extract_number = 141 AND created_at <= started_at"
            " AND started_at <= completed_at"
        ).fetchall()
        assert job == [
            (
                *("0141-update", 141, "update", extract.snapshot_date, extract.timestamp),
                *(zip_file.name, extract.sha256, "completed", None),
            )
        ]
        (total_batches,) = reader.execute(
            "SELECT total_batches FROM import_jobs WHERE extract_number = 141"
        ).fetchall()[0]
        batches = reader.execute(
            "SELECT table_name, operation, count(*), sum(records_count)::INTEGER, min(status),"
            " max(status), min(attempts), max(attempts), max(error_message),"
            " bool_and(started_at <= completed_at) FROM import_job_batches"
            " WHERE job_id = '0141-update' GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        changes = reader.execute(
            "SELECT table_name, sum(records_count) FILTER (operation = 'insert')::INTEGER,"
            " sum(rows_closed)::INTEGER, sum(rows_opened)::INTEGER, sum(rows_unchanged)::INTEGER,"
            " sum(duplicates_dropped)::INTEGER FROM import_job_batches"
            " WHERE job_id = '0141-update' GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    done = ("completed", "completed", 1, 1, None, True)
    assert total_batches > 1
    assert batches == [
        (name, operation, total_batches, records, *done)
        for name in sorted(table.name for table in TABLES)
        for operation, records in (("delete", 4), ("insert", 6))
    ]
    # 4 keys deleted, one of them sent again; 4 rows opened, one of them sent twice. Where keys are
    # unique, the new row of a key that was not deleted closes the old one.
    unique = {table.name for table in UNIQUE}
    assert changes == [
        (name, 6, 4 if name in unique else 3, 4, 1, 1)
        for name in sorted(table.name for table in TABLES)
    ]


def test_before_a_batch_is_applied_the_ledger_says_pending(core: Core, full: Path) -> None:
    core.stage(full)
    apply_some(core, FULL, [2])
    with core.at_work() as connection:
        states = connection.execute(
            "SELECT batch_number, status, max(attempts) FROM import_job_batches GROUP BY ALL"
            " ORDER BY ALL"
        ).fetchall()
        job = connection.execute("SELECT status, completed_at FROM import_jobs").fetchall()
    to_come = [] if core.shared else [(number, "pending", 0) for number in (1, 3, 4)]
    assert states == sorted([*to_come, (2, "completed", 1)])  # a lake has rows of what is done
    assert job == [("processing", None)]


def test_a_batch_that_is_rolled_back_leaves_nothing_and_is_mended(
    published: Core, update: Path, direct: Direct
) -> None:
    """Other tables are written already when this one of the batch fails."""
    table = TABLES[-2]
    published.stage(update)
    apply_some(published, UPDATE, [])
    before = ledger(published)
    sound = damage(staging_file(published.staging_dir, UPDATE), [1], table)
    with pytest.raises(RegisterError, match=f"batch 1: {table.name}: .* rows were staged") as error:
        apply_some(published, UPDATE, [1])
    assert not is_transient(error.value)
    assert ledger(published) == before

    with published.applying(UPDATE) as (register, staged):
        register.ledger.fail(staged, staged.batches[0], 3, str(error.value))
        register.apply(staged, staged.batches[1])
    with published.at_work() as connection:
        states = connection.execute(
            "SELECT DISTINCT batch_number, status, attempts, error_message IS NOT NULL"
            " FROM import_job_batches WHERE job_id = $1 ORDER BY ALL",
            [str(UPDATE)],
        ).fetchall()
        job = connection.execute(
            "SELECT status, error_message FROM import_jobs WHERE id = $1", [str(UPDATE)]
        ).fetchall()
    assert states[:2] == [(1, "failed", 3, True), (2, "completed", 1, False)]
    assert job == [("failed", f"batch 1: {error.value}")]
    with pytest.raises(NotReadyError, match=r"[12] of \d batches are not applied"):
        published.publish(UPDATE)

    sound.replace(staging_file(published.staging_dir, UPDATE))
    with published.applying(UPDATE) as (register, staged):
        for batch in staged.batches:
            register.apply(staged, batch)
    published.publish(UPDATE)
    assert published.content_hash() == direct.hashes[UPDATE]
    with published.read() as reader:
        assert reader.execute(
            "SELECT DISTINCT status, error_message FROM import_job_batches"
        ).fetchall() == [("completed", None)]
        assert reader.execute("SELECT DISTINCT error_message FROM import_jobs").fetchall() == [
            (None,)
        ]


DYING = """
import os, sys
from pathlib import Path
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline_tests.support.core import Core

def die_in_the_middle(frame, event, argument):
    if event == "return" and frame.f_code.co_name == "_change":
        if (frame.f_locals["table"].name, frame.f_locals["batch"].number) == ("activity", 2):
            os.kill(os.getpid(), 9)

with Core(Path(sys.argv[1])).applying(ExtractKey.parse(sys.argv[2])) as (register, staged):
    sys.setprofile(die_in_the_middle)
    for batch in staged.batches:
        register.apply(staged, batch)
"""


def test_a_process_killed_in_a_batch_leaves_the_batches_before(
    published: Core, update: Path, direct: Direct
) -> None:
    published.stage(update)
    arguments = [str(published.directory), str(UPDATE)]
    killed = subprocess.run([sys.executable, "-c", DYING, *arguments], capture_output=True)
    assert (killed.returncode, killed.stderr) == (-9, b"")
    with published.applying(UPDATE) as (register, staged):
        applied = [register.ledger.applied_change(UPDATE, batch.number) for batch in staged.batches]
        assert [change is not None for change in applied][:2] == [True, False]
        for batch in staged.batches:
            register.apply(staged, batch)
    published.publish(UPDATE)
    assert published.content_hash() == direct.hashes[UPDATE]


def files(core: Core) -> dict[str, tuple[int, int, bytes]]:
    """Every file but the register at work: which one it is, when it was written, its bytes."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in core.directory.rglob("*")
        if path.is_file() and path.parent != core.register_file.parent
    }


def test_publishing_again_changes_no_file(core: Core, full: Path) -> None:
    first = core.import_zip(full)
    before, content = files(core), ledger(core)
    again = core.publish(FULL)
    assert (first.already_published, again.already_published) == (False, True)
    assert (again.names_resolved, again.row_counts) == (first.names_resolved, first.row_counts)
    assert files(core) == before
    assert ledger(core) == content
    assert list(core.staging_dir.iterdir()) == []


@pytest.mark.file_only("a lake is no file")
def test_opening_the_register_again_and_again_does_not_grow_it(published: Core) -> None:
    published.publish(FULL)
    size = published.register_file.stat().st_size
    for _ in range(5):
        published.publish(FULL)
    assert published.register_file.stat().st_size <= size + 2 * 256 * 1024  # two blocks of DuckDB


@pytest.mark.file_only("a lake has no second copy")
def test_a_published_file_that_was_deleted_comes_back(published: Core, direct: Direct) -> None:
    published.database.unlink()
    assert published.publish(FULL).already_published
    assert published.content_hash() == direct.hashes[FULL]


@pytest.mark.file_only("the published file is deleted")
def test_nothing_is_published_while_another_extract_is_half_applied(
    published: Core, update: Path
) -> None:
    published.database.unlink()
    published.stage(update)
    apply_some(published, UPDATE, [1])
    with pytest.raises(NotReadyError, match="0141-update is half applied"):
        published.publish(FULL)
    assert not published.database.exists()


def test_an_extract_is_published_only_when_every_batch_is_applied(core: Core, full: Path) -> None:
    with pytest.raises(NotReadyError, match="not staged"):
        core.publish(FULL)
    core.stage(full)
    with pytest.raises(NotReadyError, match="4 of 4 batches are not applied"):
        core.publish(FULL)
    apply_some(core, FULL, [4, 1, 3])
    with pytest.raises(NotReadyError, match="1 of 4 batches are not applied"):
        core.publish(FULL)
    assert not core.is_published
    assert staging_file(core.staging_dir, FULL).exists()


def _duckdb_file(statement: str) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        with duckdb.connect(str(file)) as connection:
            connection.execute(statement)

    return make


def _sqlite_file(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE import_jobs (id)")


@pytest.mark.file_only("a lake is no file")
@pytest.mark.parametrize(
    "make",
    [
        lambda file: file.write_text("my only copy\n" * 1000),
        lambda file: file.write_bytes(b""),
        _duckdb_file("CREATE TABLE mine AS SELECT 1 AS one"),
        _duckdb_file("CREATE TABLE import_jobs AS SELECT 1 AS one"),
        _duckdb_file("CREATE VIEW import_jobs AS SELECT 1 AS one"),
        _sqlite_file,
    ],
    ids=["text", "empty", "DuckDB", "import_jobs", "view", "SQLite"],
)
def test_a_file_that_is_no_register_is_refused_and_left_as_it_is(
    make: Callable[[Path], None], published: Core, direct: Direct
) -> None:
    published.database.unlink()
    make(published.database)
    before = published.database.read_bytes()
    with pytest.raises(RegisterError, match="move it away") as caught:
        published.publish(FULL)
    assert str(caught.value).startswith(f"{published.database}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert published.database.read_bytes() == before
    published.database.unlink()
    published.publish(FULL)
    assert published.content_hash() == direct.hashes[FULL]


@pytest.mark.file_only("a lake is no file")
def test_a_directory_in_the_place_of_the_register_is_refused(core: Core, full: Path) -> None:
    core.database.mkdir(parents=True)
    with pytest.raises(RegisterError, match="not a file; move it away"):
        core.import_zip(full)
    assert list(core.database.iterdir()) == []


@pytest.mark.file_only("damage of a lake is PostgreSQL's to find")
@pytest.mark.parametrize("size", [0.1, 0.9])
def test_a_truncated_published_file_is_refused_or_replaced(
    size: float, published: Core, direct: Direct
) -> None:
    content = published.database.read_bytes()
    published.database.write_bytes(content[: int(len(content) * size)])
    try:
        published.publish(FULL)
    except KboError as error:
        assert "move it away" in str(error)
        published.database.unlink()
        published.publish(FULL)
    assert published.content_hash() == direct.hashes[FULL]


HOLDER = """
import duckdb, os, sys
file, mode, end = sys.argv[1:]
connection = duckdb.connect(file, read_only=mode == "read")
if mode == "write":
    connection.execute(
        "INSERT INTO branch VALUES ('mine', NULL, NULL, DATE '2020-01-01', 1, NULL, true)")
print(flush=True)
sys.stdin.readline()
print(connection.execute('SELECT count(*) FROM "current".enterprise').fetchone()[0], flush=True)
if mode == "write":
    connection.execute(
        "INSERT INTO branch VALUES ('mine 2', NULL, NULL, DATE '2020-01-01', 1, NULL, true)")
if end == "dies":
    os._exit(1)
connection.close()
"""


@pytest.mark.file_only("nobody has a lake open as a file")
@pytest.mark.parametrize(
    ("mode", "end"), [("read", "closes"), ("write", "closes"), ("write", "dies")]
)
def test_whoever_has_the_published_file_open_neither_stops_nor_changes_the_next(
    mode: str, end: str, published: Core, update: Path, direct: Direct
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(published.database), mode, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "\n"
        published.import_zip(update)
        assert published.content_hash() == direct.hashes[UPDATE]
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert int(holder.stdout.readline()) == len(NUMBERS)  # still the Full
        holder.wait(timeout=30)
    assert published.content_hash() == direct.hashes[UPDATE]
    with duckdb.connect() as connection:
        assert published_state_of(published.readers, connection).newest == UPDATE


@pytest.mark.file_only("a lake is no file")
def test_the_published_file_is_complete_in_itself(published: Core, tmp_path: Path) -> None:
    moved = tmp_path / "moved elsewhere.duckdb"
    shutil.copy(published.database, moved)
    shutil.rmtree(published.directory)
    with duckdb.connect(str(moved), read_only=True) as reader:
        for table in TABLES:
            assert current_rows(reader, table) == FIRST[table.name]
            assert rows_of(reader, table, f"{table.name}_at(140)") == FIRST[table.name]
        dates = reader.execute("SELECT snapshot_date FROM import_jobs").fetchall()
    assert dates == [(date(2025, 5, 21),)]
