"""Data directories as released versions left them: opened, updated, rolled back and verified."""

import subprocess
import tarfile
from pathlib import Path

import duckdb
import pytest
from sqlalchemy import make_url

from kbo_pipeline.core.errors import DamagedError, NotReadyError
from kbo_pipeline.core.extracts import ExtractKey, read_ledger_entries
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.operate.processes.postgres import _programs, embedded_server_url
from kbo_pipeline.operate.repair.witness import Recorded
from kbo_pipeline.operate.runs.progress import Progress
from kbo_pipeline.publish.verification import verify
from kbo_pipeline.read.published import content_hash, open_published
from kbo_pipeline.stage.staged import is_staged
from kbo_pipeline_tests.support.core import ALL_VERSIONS, Core, current_rows, sorted_rows, versions
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.zips import Row, keys_for, rows_for, write_extract
from kbo_pipeline_tests.tools.released.make import (
    FULL,
    HALF,
    NUMBERS,
    RELEASES,
    UPDATE,
    archive,
    write_zips,
)

NEXT = ExtractKey(143, "update")

pytestmark = pytest.mark.file_only("registers of releases are files")


@pytest.fixture(params=RELEASES)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Core:
    """The data directory of a release; the ZIPs that it knows are beside it."""
    with tarfile.open(archive(request.param)) as packed:
        packed.extractall(tmp_path, filter="data")
    return Core(tmp_path / "core", batch_rows=13)


def zip_of(core: Core, key: ExtractKey) -> Path:
    (file,) = core.directory.parent.glob(f"KboOpenData_{key.number:04d}_*{key.type.title()}.zip")
    return file


def rows_at(key: ExtractKey) -> dict[str, list[Row]]:
    """All rows of each table as of an extract."""
    marks = dict.fromkeys(NUMBERS, "a") | dict.fromkeys(NUMBERS[1:3], "b")
    if key.number >= HALF.number:
        marks |= dict.fromkeys(NUMBERS[2:5], "c")
    found: dict[str, list[Row]] = {}
    for number, mark in marks.items():
        for name, rows in rows_for([number], mark).items():
            found.setdefault(name, []).extend(rows)
    return found


def content(core: Core) -> tuple[str, object]:
    with duckdb.connect(":memory:") as connection, open_published(connection, core.readers):
        return content_hash(connection), read_ledger_entries(connection)


def test_the_register_of_a_release_is_read_updated_rolled_back_and_verified(
    released: Core, tmp_path: Path
) -> None:
    core, before = released, content(released)
    with core.read_register() as register:
        assert [extract.key for extract in register.extracts] == [str(UPDATE), str(FULL)]
        for table in TABLES:
            rows = register.state(table.name).project(", ".join(table.column_names)).fetchall()
            assert sorted_rows(rows) == sorted_rows(rows_at(UPDATE)[table.name])
    # What an older one had staged is staged again; what it had applied of that counts.
    is_of_today = versions(core) == ALL_VERSIONS
    assert is_staged(core.staging_dir, HALF) == is_of_today
    with pytest.raises(NotReadyError if is_of_today else DamagedError, match="0142-update"):
        core.publish(HALF)
    core.import_zip(zip_of(core, HALF))
    assert versions(core) == ALL_VERSIONS
    with core.read() as reader:
        for table in TABLES:
            assert current_rows(reader, table) == sorted_rows(rows_at(HALF)[table.name])
    settings = load_settings(core.settings, core.directory)
    for key in (FULL, ExtractKey(HALF.number, "full")):
        full = zip_of(core, key) if key == FULL else write_extract(tmp_path, key, rows_at(HALF))
        assert verify(settings, full).is_equal
    core.import_zip(write_extract(tmp_path, NEXT, {}, keys_for(NUMBERS[:1])))
    for key in (NEXT, HALF):
        core.rollback(key)
    assert content(core) == before
    core.import_zip(zip_of(core, HALF))
    core.rollback(HALF)
    core.rollback(UPDATE)
    assert verify(settings, zip_of(core, FULL)).is_equal


def test_the_half_applied_extract_of_a_release_is_rolled_back(released: Core) -> None:
    before = content(released)
    released.rollback(HALF)
    assert (content(released)[0], versions(released)) == (before[0], ALL_VERSIONS)
    with released.at_work() as connection:
        assert content_hash(connection) == before[0]


def test_the_published_file_of_a_release_restores_the_register(released: Core) -> None:
    before = content(released)
    released.register_file.unlink()
    released.mend(Recorded({FULL: None, UPDATE: None}))
    assert content(released) == before
    released.import_zip(zip_of(released, HALF))
    released.rollback(HALF)
    assert versions(released) == ALL_VERSIONS


@pytest.mark.parametrize(
    "released",
    [
        pytest.param(commit, marks=[pytest.mark.rare] if place else [])
        for place, commit in enumerate(list(RELEASES)[:2])
    ],
    indirect=True,
)
@pytest.mark.long
def test_the_database_of_dagster_of_a_release_goes_on(released: Core) -> None:
    directory = released.directory
    url = make_url(embedded_server_url(directory / "postgres"))
    command = [str(_programs() / "psql"), "--quiet", "--set", "ON_ERROR_STOP=1"]
    command += ["--host", str(url.query["host"]), "--username", str(url.username)]
    dump = ["--dbname", str(url.database), "--file", str(directory.parent / "dagster.sql")]
    subprocess.run([*command, *dump], check=True, stdout=subprocess.DEVNULL)
    pipeline = Pipeline(directory, settings={"KBO_BATCH_ROWS": "13"})
    with pipeline.instance() as instance:
        assert Progress(instance).published.keys() == {FULL, UPDATE}
    pipeline.kbo("status", str(UPDATE))
    pipeline.kbo("import", zip_of(released, HALF))
    with pipeline.instance() as instance:
        assert Progress(instance).published.keys() == {FULL, UPDATE, HALF}
        assert Progress(instance).missing_batches(HALF) == []
    pipeline.kbo("rollback", str(HALF))
    with pipeline.instance() as instance:
        assert Progress(instance).published.keys() == {FULL, UPDATE}
    pipeline.kbo("retry", str(HALF))
    assert len(content(released)[1]) == 3  # type: ignore[arg-type]


def test_the_archives_are_small_and_hold_what_the_script_makes(tmp_path: Path) -> None:
    zips = write_zips(tmp_path)
    for commit in RELEASES:
        assert archive(commit).stat().st_size < 200_000
        with tarfile.open(archive(commit)) as packed:
            names = packed.getnames()
        assert {file.name for file in zips.values()} <= {*names}
