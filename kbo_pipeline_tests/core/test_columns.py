"""README's recipe "Add a column that KBO has added", on a register that exists already.

The recipe is followed: a copy of the package declares the columns, and works on with the data
directory that this package has left. What KBO did not send before some extract is read as nothing.
"""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import kbo_pipeline
from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ACTIVITY, BRANCH, CODE, ENTERPRISE, Column, Table, is_sent
from kbo_pipeline_tests.support.core import Core, ImportedOnce
from kbo_pipeline_tests.support.lakes import lake_of
from kbo_pipeline_tests.support.zips import Row, csv_text, keys_for, rows_for, write_extract

PACKAGE = Path(kbo_pipeline.__file__).parent
SINCE = 142
NEW = {
    ENTERPRISE.name: Column("TaxRegion", "Region that taxes the entity."),
    ACTIVITY.name: Column("StartDate", "Date on which the activity began.", type="DATE"),
}
NUMBERS = [f"0200.000.{n:03d}" for n in range(6)]
FULL = ExtractKey(140, "full")
OLD_UPDATE, UPDATE, NEXT = (ExtractKey(number, "update") for number in (141, SINCE, SINCE + 1))


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a copy of the package in which the columns are declared, as README says."""
    directory = tmp_path_factory.mktemp("newer")
    shutil.copytree(PACKAGE, directory / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    declarations = directory / PACKAGE.name / "core" / "tables.py"
    text = declarations.read_text()
    for table, column in NEW.items():
        declared = (
            f'Column("{column.csv_name}", "{column.description}", type="{column.type}",'
            f" since={SINCE}),"
        )
        pattern = rf'(name="{table}".*?columns=\(.*?number=\w+.*?\),\n)'
        text, found = re.subn(pattern, rf"\1        {declared}\n", text, count=1, flags=re.DOTALL)
        assert found == 1
    declarations.write_text(text)
    return directory


PRELUDE = """
import json, sys
from pathlib import Path
import duckdb
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline_tests.support.core import Core, ImportedOnce

core = Core(Path(sys.argv[1]), batch_rows=13)
zips = {key: Path(name) for key, name in json.loads(sys.argv[2]).items()}
settings = load_settings({**core.settings, "KBO_BATCH_ROWS": "13"}, core.directory)

def rows(statement):
    with core.read() as reader:
        return [[v and str(v) for v in row] for row in reader.execute(statement).fetchall()]

def differing(key):
    from kbo_pipeline.publish.verification import verify
    tables = verify(settings, zips[key]).tables
    return {name: drift.rows for name, drift in tables.items() if drift.rows}
"""


def do(newer: Path, core: Core, code: str, expected: int = 0, **zips: Path) -> Any:
    """Does something to a data directory with the package that has the columns."""
    files = {key.replace("_", "-").removeprefix("e"): str(file) for key, file in zips.items()}
    script = f"{PRELUDE}\n{code}\nprint(json.dumps(result))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(core.directory), json.dumps(files)],
        capture_output=True,
        text=True,
        check=False,
        cwd=newer,
        env={
            **os.environ,
            "PYTHONPATH": f"{newer}{os.pathsep}{PACKAGE.parent}",
            "TEST_DATABASE": "ducklake" if core.shared is not None else "file",
        },
    )
    assert done.returncode == expected, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if expected == 0 else None


def wide(
    directory: Path,
    key: ExtractKey,
    marks: dict[str, str],
    valued: Sequence[str] | None = None,
    deleted: Sequence[str] = (),
) -> Path:
    """An extract with the new columns.

    Args:
        directory: where to.
        key: number and type.
        marks: what is in the rows of each number.
        valued: the numbers with values in the new columns; all of them without it.
        deleted: whose rows go first.
    """
    inserts: dict[str, list[Row]] = {}
    members: dict[str, str | bytes | None] = {}
    for number, mark in marks.items():
        for name, rows in rows_for([number], mark).items():
            inserts.setdefault(name, []).extend(rows)
    for table in (ENTERPRISE, ACTIVITY):
        column, rows = NEW[table.name], []
        for row, (number, mark) in zip(inserts[table.name], marks.items(), strict=True):
            value = datetime.date(2001, 1, len(mark)) if column.type == "DATE" else f"in {mark}"
            rows.append((*row, value if valued is None or number in valued else None))
        member = f"{table.name}.csv" if key.type == "full" else f"{table.name}_insert.csv"
        members[member] = csv_text([*table.columns, column], rows)
    return write_extract(directory, key, inserts, keys_for(deleted), members=members)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> ImportedOnce:
    """A Full and an Update of before the columns."""
    directory, changed = tmp_path_factory.mktemp("once"), NUMBERS[1:3]
    zips = {
        FULL: write_extract(directory, FULL, rows_for(NUMBERS, "a")),
        OLD_UPDATE: write_extract(
            directory, OLD_UPDATE, rows_for(changed, "bb"), keys_for(changed)
        ),
    }
    return ImportedOnce(directory / "imported", zips)


@pytest.fixture(params=["file", pytest.param("lake", marks=[pytest.mark.long, pytest.mark.rare])])
def core(request: pytest.FixtureRequest, tmp_path: Path, once: ImportedOnce) -> Core:
    """A data directory with both, as this package left it; their ZIPs are beside it."""
    directory = tmp_path / "core"
    if request.param == "lake":
        directory.mkdir()
    shared = lake_of(directory) if request.param == "lake" else None
    core = Core(directory, batch_rows=13, shared=shared)
    once.into(core, FULL, OLD_UPDATE)
    for zip_file in once.zips.values():
        shutil.copy(zip_file, tmp_path)
    return core


MARKS = dict(zip(NUMBERS, ["a", "bb", "ccc", "dddd", "dddd", "a"], strict=True))
"""What is in the rows of each number after the Updates."""


def test_the_recipe_works_on_a_register_that_exists(
    newer: Path, core: Core, tmp_path: Path
) -> None:
    update = wide(tmp_path, UPDATE, {NUMBERS[2]: "ccc", NUMBERS[3]: "ccc"}, deleted=NUMBERS[2:4])
    (warning, _) = core.stage(update).warnings
    assert "unknown columns are left out: 'TaxRegion'" in warning
    assert "kept nowhere" in warning
    assert "Add a column" in warning
    core.import_zip(update)
    # Nobody has written yet: it is shown with the columns, and no values.
    read = """
with core.read_register() as register:
    regions = register.state("enterprise").project("tax_region").distinct().fetchall()
    result = [
        regions,
        len(register.state("activity", 141).filter("start_date IS NULL").fetchall()),
        register.enterprise("0200.000.002").name,
        len(list(register.changes(142))),
    ]
"""
    with core.read_register() as register:
        changes = len(list(register.changes(SINCE)))
    assert changes > 0
    assert do(newer, core, read) == [[[None]], 6, "0200.000.002", changes]
    # The next Update brings values; rolling it back gives what was before.
    update_and_back = """
from kbo_pipeline.read.published import content_hash, open_published
def content():
    with duckdb.connect() as c, open_published(c, core.readers):
        return content_hash(c)
before = content()
core.import_zip(zips["0143-update"])
values = rows("SELECT enterprise_number, tax_region FROM current.enterprise ORDER BY ALL")
of_before = rows("SELECT DISTINCT tax_region FROM enterprise_at(142)")
changed = rows("SELECT _change, tax_region FROM enterprise_changes(143) ORDER BY ALL")
core.rollback(ExtractKey.parse("0143-update"))
result = [content() == before, values, of_before, changed]
core.import_zip(zips["0143-update"])
"""
    following = wide(tmp_path, NEXT, {n: "dddd" for n in NUMBERS[3:5]}, deleted=NUMBERS[3:5])
    is_same, values, of_before, changed = do(newer, core, update_and_back, e0143_update=following)
    assert is_same
    assert values == [[n, "in dddd" if n in NUMBERS[3:5] else None] for n in NUMBERS]
    assert of_before == [[None]]
    assert changed == [*[["added", "in dddd"]] * 2, *[["removed", None]] * 2]
    # What an older program left out is missing, and the comparison with a Full says so.
    same = wide(tmp_path, ExtractKey(143, "full"), MARKS, NUMBERS[2:5])
    later = wide(tmp_path, ExtractKey(144, "full"), MARKS)
    full = """
from kbo_pipeline.read.export import write_export
missing = differing("0143-full")
core.import_zip(zips["0144-full"])
write_export(settings, Path(sys.argv[1]) / "export")
exported = duckdb.sql(f"FROM '{sys.argv[1]}/export/enterprise.parquet'").columns
result = [missing, differing("0144-full"), "tax_region" in exported,
    rows("SELECT enterprise_number FROM enterprise_changes(144) WHERE _change = 'added'")]
"""
    missing, after, is_exported, added = do(newer, core, full, e0143_full=same, e0144_full=later)
    assert missing == {"enterprise": 2, "activity": 2}
    assert after == {}
    assert is_exported
    assert sorted(added) == [[n] for n in (NUMBERS[0], NUMBERS[1], NUMBERS[2], NUMBERS[5])]


def test_an_extract_that_is_half_applied_gets_the_values_of_all_its_batches(
    newer: Path, core: Core, tmp_path: Path
) -> None:
    marks = {number: "ccc" for number in NUMBERS[1:5]}
    update = wide(tmp_path, UPDATE, marks, deleted=NUMBERS[1:5])
    core.stage(update)
    with core.applying(UPDATE) as (register, staged):
        assert len(staged.batches) > 2
        for batch in staged.batches[1:]:
            register.apply(staged, batch)
    go_on = """
from kbo_pipeline.core.errors import DamagedError
from kbo_pipeline.stage.staged import is_staged
key = ExtractKey.parse("0142-update")
result = [is_staged(core.staging_dir, key)]
try:
    core.publish(key)
except DamagedError as error:
    result.append(str(error))
core.import_zip(zips["0142-update"])
result += [differing("0142-full"), rows("SELECT DISTINCT tax_region FROM enterprise_at(141)")]
core.rollback(key)
result += [rows("SELECT count(*) FROM enterprise WHERE _extract_number > 141")]
"""
    state = {number: marks.get(number, "a") for number in NUMBERS}
    whole = wide(tmp_path, ExtractKey(SINCE, "full"), state, [*marks])
    is_staged, refusal, differing, of_before, left = do(
        newer, core, go_on, e0142_update=update, e0142_full=whole
    )
    assert not is_staged
    assert "kbo retry 0142-update stages it again" in refusal
    assert (differing, of_before, left) == ({}, [[None]], [[0]])


KILLED = """
import os, signal
from kbo_pipeline.core.database import Database
execute, found = Database.execute, []

def watched(self, statement, **values):
    if statement.startswith("ALTER TABLE"):
        found.append(statement)
    if found and statement == "COMMIT" and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    result = execute(self, statement, **values)
    if found and statement == "COMMIT":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

Database.execute = watched
core.import_zip(zips["0142-update"])
"""


@pytest.mark.file_only("is about the log of a file")
@pytest.mark.parametrize("before", [True, False], ids=["before the commit", "after it"])
@pytest.mark.parametrize("core", ["file"], indirect=True)
def test_a_process_killed_at_the_commit_of_a_new_column_leaves_all_of_it_or_nothing(
    newer: Path, core: Core, tmp_path: Path, before: bool
) -> None:
    marks = {number: "ccc" for number in NUMBERS[1:5]}
    update = wide(tmp_path, UPDATE, marks, deleted=NUMBERS[1:5])
    core.stage(update)
    with core.applying(UPDATE) as (register, staged):
        register.apply(staged, staged.batches[0])
    do(newer, core, KILLED.format(before=before), -9, e0142_update=update)
    with core.at_work() as reader:
        has_column = "tax_region" in reader.sql("FROM enterprise").columns
        rows = reader.execute("SELECT count(*) FROM enterprise WHERE _extract_number = 142")
        assert (has_column, rows.fetchone() == (0,)) == (not before, not before)
    whole = wide(
        tmp_path, ExtractKey(SINCE, "full"), {n: marks.get(n, "a") for n in NUMBERS}, [*marks]
    )
    again = 'core.import_zip(zips["0142-update"])\nresult = differing("0142-full")'
    assert do(newer, core, again, e0142_update=update, e0142_full=whole) == {}


@pytest.mark.parametrize("core", ["file"], indirect=True)
def test_a_register_made_anew_from_zips_has_the_values_that_were_left_out(
    newer: Path, core: Core, tmp_path: Path
) -> None:
    update = wide(tmp_path, UPDATE, {NUMBERS[2]: "ccc"}, deleted=NUMBERS[2:3])
    core.import_zip(update)
    downloads = core.directory / "downloads"
    downloads.mkdir()
    for file in tmp_path.glob("KboOpenData_*"):
        shutil.copy(file, downloads)
    state = {n: "a" for n in NUMBERS} | {NUMBERS[1]: "bb", NUMBERS[2]: "ccc"}
    whole = wide(tmp_path, ExtractKey(SINCE, "full"), state, [NUMBERS[2]])
    rebuild = """
from kbo_pipeline.operate.repair.repair import rebuild_register
missing = differing("0142-full")
keys = rebuild_register(settings, ExtractKey(142, "update"), print)
result = [missing, differing("0142-full"), [str(key) for key in keys]]
"""
    missing, after, keys = do(newer, core, rebuild, e0142_full=whole)
    assert missing == {"enterprise": 2, "activity": 2}
    assert after == {}
    assert keys == ["0140-full", "0141-update", "0142-update"]


@pytest.mark.parametrize("core", ["file"], indirect=True)
def test_an_extract_from_which_a_column_is_missing_is_refused_since_it_is_declared(
    newer: Path, core: Core, tmp_path: Path
) -> None:
    narrow = write_extract(tmp_path, UPDATE, rows_for(NUMBERS[:1], "e"), keys_for(NUMBERS[:1]))
    refuse = """
from kbo_pipeline.core.errors import ExtractError
try:
    core.stage(zips["0142-update"])
except ExtractError as error:
    result = str(error)
"""
    assert re.search(
        "enterprise_insert.csv.*TaxRegion missing", do(newer, core, refuse, e0142_update=narrow)
    )


def full_of(directory: Path, date: datetime.date, *absent: Column | Table) -> Path:
    """A Full of some day without some columns or files."""
    rows = rows_for(NUMBERS, "a")
    columns = [column for column in ENTERPRISE.columns if column not in absent]
    places = [ENTERPRISE.columns.index(column) for column in columns]
    enterprises = [tuple(row[place] for place in places) for row in rows[ENTERPRISE.name]]
    members: dict[str, str | bytes | None] = {
        "enterprise.csv": csv_text(columns, enterprises),
        "meta.csv": '"Variable","Value"\n'
        f'"SnapshotDate","{date:%d-%m-%Y}"\n"ExtractTimestamp","{date:%d-%m-%Y} 23:40:18"\n'
        '"ExtractType","full"\n"ExtractNumber","50"\n"Version","1.0.0"\n',
    }
    for table in (BRANCH, CODE):
        if table in absent:
            members[f"{table.name}.csv"] = None
    written = write_extract(directory, ExtractKey(50, "full"), rows, members=members)
    return written.rename(directory / f"KboOpenData_0050_{date:%Y_%m}_Full.zip")


CAC = next(column for column in ENTERPRISE.columns if column.csv_name == "JuridicalFormCAC")
FORM = next(column for column in ENTERPRISE.columns if column.csv_name == "JuridicalForm")
OF_2014, OF_2018 = datetime.date(2014, 3, 1), datetime.date(2018, 5, 5)


@pytest.mark.parametrize(
    ("date", "absent"),
    [
        (OF_2014, (CAC, BRANCH)),
        (OF_2018, (CAC, BRANCH)),
        (OF_2018, (CAC,)),
        (OF_2018, (BRANCH,)),
        (OF_2018, ()),
        (datetime.date(2018, 12, 31), (BRANCH,)),
        (datetime.date(2019, 4, 30), (CAC,)),
    ],
)
def test_a_full_of_before_2019_is_read_with_what_it_has(
    tmp_path: Path, date: datetime.date, absent: tuple[Column | Table, ...]
) -> None:
    core = Core(tmp_path / "core", max_loss_percent=2.0)
    full = full_of(tmp_path, date, *absent)
    warnings = core.stage(full).warnings
    assert any("without JuridicalFormCAC" in text for text in warnings) == (CAC in absent)
    assert any("branch: no file" in text for text in warnings) == (BRANCH in absent)
    core.import_zip(full)
    assert not any(found.blocks for found in core.checks)
    with core.read() as reader:
        found = reader.execute(
            "SELECT (SELECT count(juridical_form_cac) FROM current.enterprise),"
            " (SELECT count(*) FROM current.branch)"
        ).fetchone()
        assert found == (
            0 if CAC in absent else len(NUMBERS),
            0 if BRANCH in absent else len(NUMBERS),
        )
    # Today's extracts go on from there; what they bring more is no loss.
    core.import_zip(write_extract(tmp_path, FULL, rows_for(NUMBERS, "a")))
    with core.read() as reader:
        branches = reader.execute("SELECT count(*) FROM current.branch")
        assert branches.fetchone() == (len(NUMBERS),)


@pytest.mark.parametrize(
    ("date", "absent", "reason"),
    [
        (datetime.date(2025, 10, 5), CAC, "JuridicalFormCAC missing"),
        (datetime.date(2025, 10, 5), BRANCH, "branch.csv: missing"),
        (datetime.date(2019, 5, 1), CAC, "JuridicalFormCAC missing"),
        (datetime.date(2019, 1, 1), BRANCH, "branch.csv: missing"),
        (OF_2018, FORM, "JuridicalForm missing"),
        (OF_2018, CODE, "code.csv: missing"),
    ],
)
def test_what_a_full_must_have_is_asked_of_it(
    tmp_path: Path, date: datetime.date, absent: Column | Table, reason: str
) -> None:
    with pytest.raises(ExtractError, match=reason):
        Core(tmp_path / "core").stage(full_of(tmp_path, date, absent))


@pytest.mark.parametrize(
    ("since", "number", "is_expected"),
    [(None, 1, True), (142, 141, False), (142, 142, True), (OF_2018, 1, True), (OF_2014, 1, True)],
)
def test_what_is_sent_since_a_number_or_a_date(
    since: int | datetime.date | None, number: int, is_expected: bool
) -> None:
    assert is_sent(since, number, OF_2018) == is_expected
    assert is_sent(OF_2018, number, OF_2014) is False


def test_made_up_extracts_are_sound_without_the_columns(newer: Path, tmp_path: Path) -> None:
    make = """
from kbo_pipeline.cli import main
directory = Path(sys.argv[1]) / "samples"
main(["sample", str(directory)], standalone_mode=False)
core.batch_rows = 1000
for key in ("0140_*Full", "0141_*Update"):
    core.import_zip(next(directory.glob(f"KboOpenData_{key}.zip")))
result = rows("SELECT count(*) > 1000, count(tax_region) FROM current.enterprise")
"""
    assert do(newer, Core(tmp_path / "made up"), make) == [["True", 0]]
