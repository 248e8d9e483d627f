"""Verifying: a Full against the register at its number; drift is made in copies of both."""

import datetime
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from kbo_pipeline.cli import main
from kbo_pipeline.core.errors import ExtractError, NotReadyError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import exclusive_lock
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.tables import ALL_TABLES, TABLES, Table
from kbo_pipeline.publish.copy import renew_views
from kbo_pipeline.publish.verification import IN_REGISTER, IN_ZIP, Verification, verify
from kbo_pipeline.stage.faults import RejectedError
from kbo_pipeline_tests.support.core import Core, publication_of
from kbo_pipeline_tests.support.zips import Row, rows_for, write_extract

FIRST, UPDATE, SAME = ExtractKey(140, "full"), ExtractKey(141, "update"), ExtractKey(141, "full")
NUMBERS = [f"0{n:03d}.000.097" for n in range(200, 260)]
CODES: list[Row] = [("Status", "AC", "NL", "Actief"), ("Status", "AC", "FR", "Actif")]
NEWER: list[Row] = [*CODES, ("Status", "ST", "NL", "Gestopt")]


def rows_at(number: int) -> dict[str, list[Row]]:
    """All rows after the first Full, or after the Update, which renews ten and drops one."""
    if number == FIRST.number:
        return {**rows_for(NUMBERS, "one"), "code": CODES}
    renewed, kept = rows_for(NUMBERS[:10], "two"), rows_for(NUMBERS[11:], "one")
    return {**{t.name: renewed[t.name] + kept[t.name] for t in TABLES}, "code": NEWER}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A register at 141, by a Full and an Update."""
    directory = tmp_path_factory.mktemp("made")
    core = Core(directory, batch_rows=20)
    core.import_zip(write_extract(directory, FIRST, rows_at(140)))
    before, after = rows_at(140), rows_at(141)
    deletes = {t.name: [str(row[0]) for row in before[t.name][:11]] for t in TABLES}
    inserts = {t.name: after[t.name][:10] for t in TABLES}
    core.import_zip(write_extract(directory, UPDATE, {**inserts, "code": NEWER}, deletes))
    return core


@pytest.fixture
def settings(made: Core, tmp_path: Path) -> Settings:
    """A data directory with a copy of what readers have, and no register at work.

    A lake is read where it is.
    """
    data = tmp_path / "data"
    data.mkdir()
    if made.shared is None:
        shutil.copyfile(made.database, data / "kbo.duckdb")
    return load_settings(made.settings | {"KBO_DATA_DIR": str(data)}, tmp_path)


def full(
    tmp_path: Path, key: ExtractKey = SAME, changed: Mapping[str, Sequence[Row]] | None = None
) -> Path:
    rows: dict[str, Sequence[Row]] = {**rows_at(key.number), **(changed or {})}
    return write_extract(tmp_path, key, rows)


@pytest.mark.parametrize("key", [SAME, FIRST])
def test_a_full_of_a_published_number_is_equal_whichever_it_was_published_from(
    settings: Settings, tmp_path: Path, key: ExtractKey
) -> None:
    before = publication_of(settings.database)
    found = verify(settings, full(tmp_path, key))
    assert found.is_equal
    assert (found.full, found.published) == (key, UPDATE if key == SAME else FIRST)
    for table in ALL_TABLES:
        expected = len(rows_at(key.number)[table.name])
        drift = found.tables[table.name]
        assert (drift.rows_in_zip, drift.rows_in_register) == (expected, expected)
        assert drift.samples == {}
    assert str(found).startswith(f"{found.published}: equal to {key}, ")
    assert publication_of(settings.database) == before
    assert not settings.register_file.exists()
    assert not (settings.work_dir / "verifying").exists()


def test_rows_that_stand_twice_in_the_zip_are_no_difference(
    settings: Settings, tmp_path: Path
) -> None:
    rows = rows_at(141)
    twice = {name: [*rows[name], rows[name][3], rows[name][3]] for name in ("activity", "contact")}
    found = verify(settings, full(tmp_path, SAME, twice))
    assert found.is_equal
    assert found.tables["activity"].rows_in_zip == len(rows["activity"])


def test_a_full_is_staged_only_where_it_is_not_shown_to_be_equal_without(
    settings: Settings, tmp_path: Path
) -> None:
    steps: list[tuple[str, int, int]] = []

    def note(name: str, done: int, total: int) -> None:
        steps.append((name, done, total))

    names, total = [table.name for table in ALL_TABLES], 3 * len(ALL_TABLES)
    read_twice = [(name, done, total) for done, name in enumerate(2 * names)]
    assert verify(settings, full(tmp_path), report=note).is_equal
    assert sorted(name for name, _, _ in steps[: len(names)]) == sorted(names)
    assert [done for _, done, _ in steps] == [done for _, done, _ in read_twice]
    steps.clear()
    changed = {"enterprise": rows_at(141)["enterprise"][1:]}
    assert not verify(settings, full(tmp_path, SAME, changed), report=note).is_equal
    assert [name for name, _, _ in steps[-len(names) :]] == names
    assert [done for _, done, _ in steps] == list(range(len(steps)))


def test_beside_a_faulty_row_all_others_are_compared(settings: Settings, tmp_path: Path) -> None:
    zip_file = full(tmp_path)
    with zipfile.ZipFile(zip_file) as archive:
        usual = archive.read("contact.csv").decode()
    faulty = f"{usual}9999999999,BRA,TEL\n"
    (tmp_path / "odd").mkdir()
    odd = write_extract(tmp_path / "odd", SAME, rows_at(141), members={"contact.csv": faulty})
    found = verify(settings, odd)
    assert found.is_equal
    assert found.rejected_rows == 1


def change(table: Table, row: Row) -> Row:
    """The row with another value in its last column."""
    value = datetime.date(1999, 9, 9) if isinstance(row[-1], datetime.date) else "drifted"
    value = value if not table.columns[-1].number else "0999.000.001"
    return (*row[:-1], value)


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.name)
def test_a_changed_row_is_drift_in_both_directions(
    settings: Settings, tmp_path: Path, table: Table
) -> None:
    rows = rows_at(141)[table.name]
    index = len(rows) // 2
    before = rows[index]
    after = change(table, before)
    if table.columns[-1].type == "DATE":
        after = (*before[:-1], datetime.date(1999, 9, 9))
    zip_file = full(tmp_path, SAME, {table.name: [*rows[:index], after, *rows[index + 1 :]]})
    found = verify(settings, zip_file)
    assert not found.is_equal
    assert found.drift == 2
    assert {name for name, drift in found.tables.items() if drift.rows} == {table.name}
    drift = found.tables[table.name]
    assert (drift.only_in_zip, drift.only_in_register) == (1, 1)
    assert drift.samples == {IN_ZIP: [after], IN_REGISTER: [before]}
    said = f"{table.name} 1 only in the ZIP, 1 only in the register"
    assert str(found) == f"{UPDATE}: differs from {SAME}: {said}"


def test_missing_and_surplus_rows_are_counted_at_both_ends_of_the_axis(
    settings: Settings, tmp_path: Path
) -> None:
    rows = rows_at(141)
    lone = ("9.999.999.999", "BRA", "TEL", "1")
    found = verify(settings, full(tmp_path, SAME, {"contact": [*rows["contact"][15:], lone]}))
    drift = found.tables["contact"]
    assert (drift.only_in_zip, drift.only_in_register) == (1, 15)
    assert drift.samples[IN_ZIP] == [lone]
    assert drift.samples[IN_REGISTER] == sorted(rows["contact"][:10])
    assert found.drift == 16


@pytest.mark.file_only("the published file is changed by hand")
@pytest.mark.parametrize("doubled", [False, True])
def test_a_register_that_was_changed_by_hand_is_told(
    settings: Settings, tmp_path: Path, doubled: bool
) -> None:
    with duckdb.connect(str(settings.database)) as connection:
        connection.execute(
            "INSERT INTO contact SELECT * FROM contact WHERE _is_current LIMIT 1"
            if doubled
            else "DELETE FROM contact WHERE rowid IN"
            " (SELECT rowid FROM contact WHERE _is_current LIMIT 1)"
        )
    found = verify(settings, full(tmp_path))
    drift = found.tables["contact"]
    assert (drift.only_in_zip, drift.only_in_register) == ((0, 1) if doubled else (1, 0))
    assert found.drift == 1


@pytest.mark.file_only("views of a file are made anew by hand")
def test_nobody_is_left_out_by_the_setting(settings: Settings, tmp_path: Path) -> None:
    assert renew_views(settings.database_file, "legal-persons")
    others = load_settings(
        {"KBO_DATA_DIR": str(settings.data_dir), "KBO_PRIVACY": "legal-persons"}, tmp_path
    )
    assert verify(others, full(tmp_path)).is_equal


def test_an_update_an_unknown_number_and_an_unsound_zip_are_refused(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ExtractError, match=r"^0141-update: only a Full holds whole tables"):
        verify(settings, write_extract(tmp_path, UPDATE, {}))
    later = ExtractKey(142, "full")
    with pytest.raises(NotReadyError, match=r"^0142-full: no extract of number 142 .*: 141, 140"):
        verify(settings, write_extract(tmp_path, later, rows_at(141)))
    bad = write_extract(tmp_path, SAME, rows_at(141), members={"contact.csv": '"Nonsense"\n'})
    with pytest.raises(RejectedError, match=r"contact\.csv"):
        verify(settings, bad)
    with pytest.raises(NotReadyError, match="nothing is published yet"):
        verify(load_settings({"KBO_DATA_DIR": "none"}, tmp_path), full(tmp_path))
    assert not (settings.work_dir / "verifying").exists()


def test_one_at_a_time(settings: Settings, tmp_path: Path) -> None:
    with (
        exclusive_lock(settings.work_dir / "verifying.lock"),
        pytest.raises(StorageError, match="is at work here"),
    ):
        verify(settings, full(tmp_path))


def test_the_command_ends_with_0_only_when_equal(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.environment.items():
        monkeypatch.setenv(name, value)
    equal = CliRunner().invoke(main, ["verify", str(full(tmp_path))])
    assert (equal.exit_code, equal.stderr) == (0, "")
    assert "0141-update: equal to 0141-full" in equal.stdout
    assert [line.split()[0] for line in equal.stdout.splitlines()[1:9]] == [
        table.name for table in ALL_TABLES
    ]

    drifted = full(tmp_path, SAME, {"code": CODES})
    told = CliRunner().invoke(main, ["verify", str(drifted)])
    assert told.exit_code == 1
    assert "code, only in register: ('Status', 'ST', 'NL', 'Gestopt')" in told.stdout
    as_json = CliRunner().invoke(main, ["verify", "--json", str(drifted)])
    assert as_json.exit_code == 1
    found = json.loads(as_json.stdout)
    assert (found["full"], found["published"], found["equal"]) == (str(SAME), str(UPDATE), False)
    assert found["tables"]["code"] == {
        "rows_in_zip": 2,
        "rows_in_register": 3,
        "only_in_zip": 0,
        "only_in_register": 1,
        "samples": {"register": [["Status", "ST", "NL", "Gestopt"]]},
    }
    refused = CliRunner().invoke(main, ["verify", str(write_extract(tmp_path, UPDATE, {}))])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("kbo: 0141-update: only a Full")


def test_a_verification_adds_up() -> None:
    nothing = Verification(SAME, UPDATE, {}, datetime.datetime.now(datetime.UTC), "", "")
    assert nothing.is_equal
    assert nothing.to_json()["tables"] == {}
