"""Parquet exports: what is in them, and that they are whole or not there, whatever dies."""

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from kbo_pipeline.cli import main
from kbo_pipeline.core.errors import ExportError, NotReadyError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.read.export import write_export
from kbo_pipeline.read.manifest import FORMAT, MANIFEST
from kbo_pipeline.read.views import PROFILE
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core, current_rows, sorted_rows
from kbo_pipeline_tests.support.processes import wait_until

SAMPLE = Sample(enterprises=400, seed=6)
NAMES = {*(table.name for table in ALL_TABLES), PROFILE}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A register after a Full and an Update."""
    directory = tmp_path_factory.mktemp("made")
    core = Core(directory, batch_rows=1000)
    core.import_zip(SAMPLE.write_full(directory / "zips", 140))
    core.import_zip(SAMPLE.write_update(directory / "zips", 141))
    return core


def settings_of(core: Core, **others: str) -> Settings:
    return load_settings({"KBO_DATA_DIR": str(core.directory), **others}, core.directory)


@pytest.fixture
def settings(made: Core) -> Settings:
    return settings_of(made)


def manifest(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
    return found


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_an_export_holds_the_current_tables_sorted_by_key(
    made: Core, settings: Settings, tmp_path: Path
) -> None:
    done = write_export(settings, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {MANIFEST, *(f"{name}.parquet" for name in NAMES)}
    with made.read() as reader, duckdb.connect() as parquet:
        for table in ALL_TABLES:
            file = tmp_path / "out" / f"{table.name}.parquet"
            columns = ", ".join(table.column_names)
            rows = parquet.execute(f"SELECT {columns} FROM '{file}'").fetchall()
            assert sorted_rows(rows) == current_rows(reader, table)
            assert [row[0] for row in rows] == sorted(row[0] for row in rows)
            assert done.tables[table.name].rows == len(rows)
            codecs = parquet.execute(
                f"SELECT DISTINCT compression FROM parquet_metadata('{file}')"
            ).fetchall()
            assert codecs == [("ZSTD",)]
        profiles = f"{tmp_path / 'out' / PROFILE}.parquet"
        exported = parquet.execute(f"FROM '{profiles}'").fetchall()
        seen = reader.execute(f"FROM current.{PROFILE} ORDER BY enterprise_number").fetchall()
        assert exported == seen
        assert len(seen) > 300


def test_the_manifest_says_what_the_files_are(settings: Settings, tmp_path: Path) -> None:
    done = write_export(settings, tmp_path / "out")
    said = manifest(tmp_path / "out")
    assert said == json.loads(json.dumps(done.to_json(), default=str))
    assert (said["format"], said["extract"], said["privacy"]) == (FORMAT, "0141-update", "full")
    assert said["snapshot_date"] == "2025-10-05"
    assert said["source"] == "Source: KBO Open Data, FPS Economy; data of 2025-10-05"
    assert "No direct marketing" in said["licence"]
    assert said["tables"].keys() == NAMES
    for table in said["tables"].values():
        data = (tmp_path / "out" / table["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (table["bytes"], table["sha256"])
    code = said["tables"]["code"]["columns"]
    assert code == dict.fromkeys(("category", "code", "language", "description"), "VARCHAR")
    assert done.bytes == sum(table["bytes"] for table in said["tables"].values())


def test_the_setting_counts_whatever_the_views_of_the_file_say(made: Core, tmp_path: Path) -> None:
    write_export(settings_of(made, KBO_PRIVACY="legal-persons"), tmp_path / "out")
    assert manifest(tmp_path / "out")["privacy"] == "legal-persons"
    with made.read() as reader, duckdb.connect() as parquet:
        persons = reader.execute(
            "SELECT enterprise_number FROM current.enterprise WHERE type_of_enterprise = '1'"
        ).fetchall()
        assert len(persons) > 50
        for table in ALL_TABLES:
            file = tmp_path / "out" / f"{table.name}.parquet"
            ((rows, found),) = parquet.execute(
                f"SELECT count(*), count(*) FILTER ({table.key} IN $persons) FROM '{file}'",
                {"persons": [number for (number,) in persons]},
            ).fetchall()
            assert (table.name, found) == (table.name, 0)
            assert rows > 0


def test_an_export_of_ours_is_replaced_and_so_is_an_empty_directory(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    write_export(settings, tmp_path / "out")
    (tmp_path / "out" / "enterprise.parquet").write_bytes(b"old")
    write_export(settings, tmp_path / "out")
    assert (tmp_path / "out" / "enterprise.parquet").read_bytes()[:4] == b"PAR1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["letter.txt"], "letter.txt in it is not of an export"),
        ([MANIFEST], f"{MANIFEST} in it is not of an export"),
        ([], "notes.txt in it is not of an export"),
    ],
)
def test_what_is_no_export_stays_and_is_refused(
    settings: Settings, tmp_path: Path, names: list[str], says: str
) -> None:
    out = tmp_path / "out"
    if names:
        out.mkdir()
    else:  # an export of ours, with something in it that is none
        write_export(settings, out)
        names = ["notes.txt"]
    for name in names:
        (out / name).write_text('{"format": "of somebody else"}')
    before = content(out)
    with pytest.raises(ExportError) as refused:
        write_export(settings, out)
    assert says in str(refused.value)
    assert content(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_in_its_place_stays(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ExportError, match="a file is there"):
        write_export(settings, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_nothing_is_written_where_nothing_is_published(tmp_path: Path) -> None:
    core = Core(tmp_path / "data")
    with pytest.raises(NotReadyError, match="nothing is published yet"):
        write_export(settings_of(core), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_than_the_newest_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match=r"^0140-full: only the newest .* 0141-update"):
        write_export(settings, tmp_path / "out", extract="0140-full")
    assert not (tmp_path / "out").exists()


def test_a_second_export_at_the_same_time_is_refused(settings: Settings, tmp_path: Path) -> None:
    with (
        exclusive_lock(settings.work_dir / "export.lock"),
        pytest.raises(StorageError, match="is at work here"),
    ):
        write_export(settings, tmp_path / "out")


def test_an_export_that_fails_leaves_the_old_one(settings: Settings, tmp_path: Path) -> None:
    write_export(settings, tmp_path / "out")
    before = content(tmp_path / "out")

    def fail(name: str, done: int, total: int) -> None:
        if done == total - 2:
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_export(settings, tmp_path / "out", report=fail)
    assert content(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


SLOW = """
import sys, time
from pathlib import Path
from kbo_pipeline.read.export import write_export
from kbo_pipeline.core.settings import load_settings

def stand_still(name, done, total):
    if done == total - 1:
        Path(sys.argv[2]).touch()
        time.sleep(600)

write_export(load_settings(), Path(sys.argv[1]), report=stand_still)
"""


def test_a_kill_in_the_middle_leaves_the_old_one_and_the_next_is_whole(
    made: Core, settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_export(settings, out)
    before = content(out)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(out), str(tmp_path / "reached")],
        cwd=REPOSITORY,
        env={**os.environ, "KBO_DATA_DIR": str(made.directory)},
    )
    wait_until((tmp_path / "reached").exists, "the last table")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert content(out) == before
    write_export(settings, out)
    assert content(out).keys() == before.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "reached"}


def test_one_that_was_killed_between_its_two_renames_is_put_back_first(
    settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_export(settings, out)
    before = content(out)
    os.rename(out, tmp_path / ".out.replaced")
    with pytest.raises(KeyboardInterrupt):
        write_export(settings, out, report=_interrupt)
    assert content(out) == before


def _interrupt(name: str, done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_the_command_names_the_files_and_the_source(
    made: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KBO_DATA_DIR", str(made.directory))
    done = CliRunner().invoke(main, ["export", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    *files, manifest, last = done.stdout.splitlines()
    assert len(files) == len(NAMES)
    assert manifest == str(tmp_path / "out" / MANIFEST)
    assert not [line for line in files if re.search(r", 0(\.0+)? [kM]B$", line)]
    assert last.startswith("Source: KBO Open Data, FPS Economy; data of 2025-10-05; ")
    assert last.endswith("; extract 0141-update; KBO_PRIVACY=full")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    refused = CliRunner().invoke(main, ["export", str(tmp_path / "mine")])
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"kbo: {tmp_path / 'mine'}: x in it is not of an export")


def test_the_published_file_may_be_replaced_meanwhile(tmp_path: Path) -> None:
    core = Core(tmp_path / "data", batch_rows=1000)
    core.import_zip(SAMPLE.write_full(tmp_path / "zips", 140))
    update = SAMPLE.write_update(tmp_path / "zips", 141)

    def publish_once(name: str, done: int, total: int) -> None:
        if done == 1:
            core.import_zip(update)

    done = write_export(settings_of(core), tmp_path / "out", report=publish_once)
    assert done.extract == str(ExtractKey(140, "full"))
    again = write_export(settings_of(core), tmp_path / "out")
    assert again.extract == "0141-update"
