"""The layout of a register: noted, brought up to date by who writes, never by who reads."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.apply.register import open_register_to_write
from kbo_pipeline.core.errors import DamagedError, KboError, NotReadyError, RegisterError
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.schema import MIGRATIONS, SCHEMA_VERSION
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.operate.repair.witness import Recorded, damaged_staging
from kbo_pipeline.publish.copy import copy_register, renew_views
from kbo_pipeline.publish.verification import verify
from kbo_pipeline.read.published import content_hash, open_published
from kbo_pipeline.read.register import read_register
from kbo_pipeline.stage.staged import is_staged, staging_file
from kbo_pipeline_tests.support.core import (
    ALL_VERSIONS,
    READ_VERSIONS,
    Core,
    ImportedOnce,
    current_rows,
    versions,
)
from kbo_pipeline_tests.support.history import DELETES, FIRST, FULL, NUMBERS, SECOND, UPDATE
from kbo_pipeline_tests.support.lakes import new_lake
from kbo_pipeline_tests.support.zips import write_extract


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> ImportedOnce:
    directory = tmp_path_factory.mktemp("once")
    zips = {FULL: write_extract(directory, FULL, FIRST)}
    return ImportedOnce(directory / "imported", zips)


@pytest.fixture
def core(tmp_path: Path, once: ImportedOnce) -> Core:
    """A data directory with a Full, in which the next extracts make several batches."""
    core = Core(tmp_path / "core", batch_rows=13)
    once.into(core, FULL)
    shutil.copy(once.zips[FULL], tmp_path)
    return core


@pytest.fixture
def update(tmp_path: Path) -> Path:
    return write_extract(tmp_path, UPDATE, SECOND, DELETES)


def write(core: Core, *statements: str) -> None:
    """Does to the register at work, and to what readers open, what no program of ours does."""
    with (
        duckdb.connect(":memory:") as connection,
        open_register_to_write(connection, core.register),
    ):
        for statement in statements:
            connection.execute(statement)
    if core.shared is None:
        with duckdb.connect(str(core.database)) as connection:
            for statement in statements:
                connection.execute(statement)


def make_older(core: Core) -> None:
    """Makes a register what the first releases left: it says nothing of a version."""
    names = tables_of_migrations()
    if core.shared is not None:  # readers of it see views
        write(core, *(f"DROP VIEW IF EXISTS register.main.{name}" for name in names))
    write(core, *(f"DROP TABLE {name}" for name in names))


def tables_of_migrations() -> list[str]:
    """The tables that no register had before there were versions."""
    with duckdb.connect(":memory:") as connection:
        for migration in MIGRATIONS:
            for statement in migration.statements:
                connection.execute(statement)
        return [name for (name,) in connection.execute("SHOW TABLES").fetchall()]


def test_a_new_register_has_all_versions(core: Core) -> None:
    assert versions(core) == ALL_VERSIONS
    assert len(ALL_VERSIONS) == SCHEMA_VERSION >= 1


@pytest.mark.file_only("compares the bytes of files")
def test_opening_an_older_register_changes_nothing(core: Core) -> None:
    make_older(core)
    before = core.register_file.read_bytes(), core.database.read_bytes()
    with duckdb.connect(":memory:") as connection:
        with open_register_to_write(connection, core.register) as register:
            assert register.ledger.published() == FULL
        with open_published(connection, core.readers) as standing:
            assert standing.newest == FULL
            assert [current_rows(connection, t) != [] for t in ALL_TABLES[:-1]] == [True] * 7
    with read_register(core.database) as published:
        assert published.enterprise(NUMBERS[0]).number == NUMBERS[0]
    assert (core.register_file.read_bytes(), core.database.read_bytes()) == before
    assert versions(core) is None


def test_the_first_write_brings_an_older_register_up_to_date(core: Core, update: Path) -> None:
    make_older(core)
    assert versions(core) is None
    core.import_zip(update)
    assert versions(core) == ALL_VERSIONS
    core.rollback(UPDATE)
    core.import_zip(update)
    assert versions(core) == ALL_VERSIONS  # each once


@pytest.mark.rare
@pytest.mark.long
def test_an_older_lake_is_read_and_brought_up_to_date_by_the_first_write(
    tmp_path: Path, update: Path
) -> None:
    core = Core(tmp_path / "core", batch_rows=13, shared=new_lake(tmp_path / "lake"))
    core.import_zip(write_extract(tmp_path, FULL, FIRST))
    before = core.content_hash()
    make_older(core)
    with core.read_register() as published:
        assert published.enterprise(NUMBERS[0]).number == NUMBERS[0]
    core.import_zip(update)
    core.rollback(UPDATE)
    assert (versions(core), core.content_hash()) == (ALL_VERSIONS, before)
    write(core, NEWER)
    with pytest.raises(RegisterError, match="upgrade it"):
        core.import_zip(update)


def test_an_older_register_is_rolled_back(core: Core, update: Path) -> None:
    before = core.content_hash()
    core.import_zip(update)
    make_older(core)
    core.rollback(UPDATE)
    assert (versions(core), core.content_hash()) == (ALL_VERSIONS, before)


def test_an_older_published_register_is_copied_and_verified(core: Core, tmp_path: Path) -> None:
    make_older(core)
    settings = load_settings(core.settings, core.directory)
    with duckdb.connect(":memory:") as connection:
        copied = copy_register(
            connection, core.readers, DuckDBFile(tmp_path / "copy.duckdb"), privacy="full"
        )
    with duckdb.connect(str(tmp_path / "copy.duckdb"), read_only=True) as connection:
        assert connection.execute(READ_VERSIONS).fetchall() == ALL_VERSIONS
        assert content_hash(connection) == copied
    assert verify(settings, next(tmp_path.glob("*Full.zip"))).is_equal


def test_a_copy_of_what_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with (
        duckdb.connect(":memory:") as connection,
        pytest.raises(NotReadyError, match="nothing is published yet"),
    ):
        copy_register(
            connection, DuckDBFile(tmp_path / "none"), DuckDBFile(tmp_path / "copy"), privacy="full"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.file_only("a shared register has no published file")
def test_an_older_published_file_is_renewed_whole(core: Core) -> None:
    make_older(core)
    with duckdb.connect(str(core.database)) as connection:
        connection.execute("COMMENT ON VIEW \"current\".source IS 'of another version'")
    assert renew_views(core.database, "full")
    with core.read() as reader:
        assert reader.execute(READ_VERSIONS).fetchall() == ALL_VERSIONS
    assert not renew_views(core.database, "full")


NEWER = f"INSERT INTO schema_version VALUES ({SCHEMA_VERSION + 1}, 'of tomorrow', now())"
WIDER = "ALTER TABLE enterprise ADD COLUMN of_tomorrow VARCHAR"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [(NEWER, f"version {SCHEMA_VERSION + 1}.*knows {SCHEMA_VERSION}"), (WIDER, "of_tomorrow")],
    ids=["version", "column"],
)
def test_a_newer_register_is_refused_in_one_line_and_left_as_it_is(
    core: Core, update: Path, statement: str, reason: str
) -> None:
    core.stage(update)
    write(core, statement)
    with core.at_work() as connection:
        before = content_hash(connection), versions(core)
    for attempt in (
        lambda: core.import_zip(update),
        lambda: core.rollback(FULL),
        lambda: core.publish(FULL),
        lambda: core.mend(Recorded()),
    ):
        with pytest.raises(RegisterError, match=reason) as refused:
            attempt()
        assert "upgrade it" in str(refused.value)
        assert "\n" not in str(refused.value)
    with core.at_work() as connection:
        assert (content_hash(connection), versions(core)) == before


def test_a_reader_refuses_a_newer_version(core: Core) -> None:
    write(core, NEWER)
    with duckdb.connect(":memory:") as connection:
        for _ in range(2):  # the first attempt leaves nothing attached
            with (
                pytest.raises(RegisterError, match="upgrade it"),
                open_published(connection, core.readers),
            ):
                pass
    with pytest.raises(KboError, match="upgrade it"):
        core.read_register()


def test_a_staging_file_of_another_version_is_staged_again(core: Core, update: Path) -> None:
    core.stage(update)
    settings = load_settings(core.settings, core.directory)
    assert is_staged(core.staging_dir, UPDATE)
    assert damaged_staging(settings) == {}
    file = staging_file(core.staging_dir, UPDATE)
    for statement in (
        "UPDATE extract SET schema_version = schema_version - 1",
        "ALTER TABLE extract DROP schema_version",
        "ALTER TABLE enterprise ADD COLUMN of_tomorrow VARCHAR",
        "ALTER TABLE contact DROP COLUMN value",
    ):
        core.stage(update)
        with duckdb.connect(str(file)) as connection:
            for table in ALL_TABLES:
                connection.execute(f"DROP VIEW import_staging_{table.name}")
            connection.execute(statement)
        assert not is_staged(core.staging_dir, UPDATE)
        assert damaged_staging(settings) == {UPDATE: file}
        with pytest.raises(DamagedError, match="another version; kbo retry 0141-update"):
            core.publish(UPDATE)
    core.import_zip(update)
    assert core.is_published


KILLED = """
import os, signal, sys
from pathlib import Path
from kbo_pipeline.core.database import Database
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline_tests.support.core import Core

execute, found = Database.execute, []

def watched(self, statement, **values):
    if statement.startswith("INSERT INTO schema_version"):
        found.append(statement)
    if found and sys.argv[2] == "during":
        os.kill(os.getpid(), signal.SIGKILL)
    if found and statement == "COMMIT" and sys.argv[2] == "before the commit":
        os.kill(os.getpid(), signal.SIGKILL)
    result = execute(self, statement, **values)
    if found and statement == "COMMIT":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

Database.execute = watched
with Core(Path(sys.argv[1]), batch_rows=13).applying(ExtractKey.parse("0141-update")):
    pass
"""


@pytest.mark.file_only("is about the log of a file")
@pytest.mark.parametrize("when", ["during", "before the commit", "after the commit"])
def test_a_process_killed_while_it_migrates_leaves_the_one_layout_or_the_other(
    core: Core, update: Path, when: str
) -> None:
    make_older(core)
    with core.at_work() as connection:
        before = content_hash(connection)
    core.stage(update)
    command = [sys.executable, "-c", KILLED, str(core.directory), when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with core.at_work() as connection:
        jobs = connection.execute("SELECT count(*) FROM import_jobs").fetchone()
        assert content_hash(connection) == before
    # With the first write, which is the job in the ledger: never the one without the other.
    is_done = when == "after the commit"
    assert (versions(core), jobs) == ((ALL_VERSIONS, (2,)) if is_done else (None, (1,)))
    core.import_zip(update)
    assert versions(core) == ALL_VERSIONS
