"""Matching entries and whole files with the register."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import psutil
import pytest
from click.testing import CliRunner, Result

import kbo_pipeline.read.match_file as match_file_module
from kbo_pipeline.cli import main
from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.read.index import build_index
from kbo_pipeline.read.match_file import Columns, match_file
from kbo_pipeline.read.register import PublishedRegister
from kbo_pipeline.read.types import Entry
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, write_extract

PEETERS, PETERS, TWIN, OTHER_TWIN = "0200.065.765", "0200.068.636", "0200.171.970", "0200.245.711"
UNIT = "2.000.000.339"


def _address(number: str, kind: str, zipcode: str) -> Row:
    return (number, kind, None, None, zipcode, "Leieland", None, "Kaai", None, "1", *[None] * 3)


ROWS: dict[str, list[Row]] = {
    "enterprise": [(n, "AC", "000", "2", *[None] * 3) for n in (PEETERS, PETERS, TWIN, OTHER_TWIN)],
    "establishment": [(UNIT, None, PETERS)],
    "denomination": [
        (PEETERS, "2", "001", "Bakkerij Peeters"),
        (PETERS, "2", "001", "Slagerij Vandenberghe"),
        (UNIT, "2", "003", "Het Worstje"),
        (TWIN, "2", "001", "De Gouden Haan"),
        (OTHER_TWIN, "2", "001", "De Gouden Haan"),
    ],
    "address": [
        _address(PEETERS, "REGO", "9007"),
        _address(UNIT, "BAET", "1005"),
        _address(TWIN, "REGO", "2017"),
        _address(OTHER_TWIN, "REGO", "3099"),
    ],
}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    directory = tmp_path_factory.mktemp("matching")
    core = Core(directory / "core", batch_rows=1000)
    core.import_zip(write_extract(directory, ExtractKey(140, "full"), ROWS))
    build_index(load_settings(core.settings, root=directory))
    return core


@pytest.fixture(scope="module")
def register(core: Core) -> Iterator[PublishedRegister]:
    with core.read_register() as register:
        yield register


@pytest.mark.parametrize(
    ("entry", "number", "certain", "why"),
    [
        (Entry("Bakkerij Peeters NV"), PEETERS, True, "the name is equal; no other is as near"),
        (Entry("peeters, bakkerij"), PEETERS, True, "the name is equal but for order; no other"),
        (Entry("Bakkerij Peters", "9007"), PEETERS, True, "nearly equal, at this postcode; no oth"),
        (Entry("Bakkerij Peters", "1000"), PEETERS, False, "nearly equal, at another postcode"),
        (Entry("Bakkerij"), PEETERS, False, "the name is only similar"),
        (Entry("Het worstje", "1005"), PETERS, True, "the name is equal, at this postcode"),
        (Entry("De Gouden Haan"), TWIN, False, "the name is equal; another one is equal"),
        (
            Entry("Gouden Haan de", "3099"),
            OTHER_TWIN,
            True,
            "equal but for order, at this postcode",
        ),
        (Entry("iemand", None, UNIT), PETERS, False, "belongs to Slagerij Vandenberghe"),
        (Entry("Vandenberge", None, "BE 0200 068 636"), PETERS, True, "and the name agrees"),
        (Entry("", None, "0200068636"), PETERS, True, "the number is in the register"),
        (Entry("Bakkerij Peeters", None, "0200.065.766"), PEETERS, True, "wrong check digits; the"),
        (Entry("Bakkerij Peeters", None, "0201.105.843"), PEETERS, True, "is not in the register;"),
        (Entry("Bakkerij Peeters", "", "geen"), PEETERS, True, "the number is none of KBO's; the"),
        (Entry("zzz qqq"), None, False, "no name is like it"),
        (Entry("🚲"), None, False, "there is no name to go by"),
        (Entry("x" * 100_000), None, False, "no name is like it"),
    ],
)
def test_an_entry_is_matched_with_a_reason(
    register: PublishedRegister, entry: Entry, number: str | None, certain: bool, why: str
) -> None:
    (matched,) = register.match([entry])
    assert matched.entry == entry
    assert (matched.best and matched.best.enterprise_number) == number
    assert matched.certain == certain
    assert why in matched.why
    scores = [match.score for match in matched.candidates]
    assert all(0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)


def test_the_runner_up_is_the_next_best(register: PublishedRegister) -> None:
    (matched,) = register.match([Entry("De Gouden Haan", "2017")])
    assert matched.best is not None and matched.runner_up is not None
    assert (matched.best.enterprise_number, matched.best.score) == (TWIN, 1.0)
    assert (matched.runner_up.enterprise_number, matched.runner_up.score) == (OTHER_TWIN, 0.9)
    assert matched.certain


LINES = [
    ("1", "Bakkerij Peeters", "9007", ""),
    ("2", 'Slagerij "Vandenberge"; & co', "", "BE0200.068.636"),
    ("3", "niemand, zoals dit", "", ""),
]


def write_csv(file: Path, lines: Sequence[tuple[str, ...]], delimiter: str = ",") -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerows([("Klant", "Naam", "Postcode", "BTW"), *lines])
    return file


def kbo_match(core: Core, *arguments: object) -> Result:
    return CliRunner(env=core.settings).invoke(main.commands["match"], [*map(str, arguments)])


COLUMNS = ("--name", "Naam", "--zipcode", "Postcode", "--number", "BTW")


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_csv_file_becomes_one_with_the_matches(
    core: Core, tmp_path: Path, delimiter: str
) -> None:
    source, target = write_csv(tmp_path / "in.csv", LINES, delimiter), tmp_path / "out.csv"
    result = kbo_match(core, source, target, *COLUMNS)
    assert result.stdout == f"{target}: 3 lines, 2 certain, 1 without a candidate\n"
    with target.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [tuple(row[c] for c in ("Klant", "Naam")) for row in rows] == [x[:2] for x in LINES]
    assert [row["kbo_number"] for row in rows] == [PEETERS, PETERS, ""]
    assert [row["kbo_certain"] for row in rows] == ["true", "true", "false"]
    assert rows[0]["kbo_score"] == "1.0" and rows[0]["kbo_zipcode"] == "9007"
    assert rows[2]["kbo_why"] == "no name is like it"
    assert [path.name for path in tmp_path.iterdir() if path.name[:2] != "in"] == ["out.csv"]


def test_parquet_keeps_its_types_and_empty_files_stay_empty(core: Core, tmp_path: Path) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT 7 AS id, 'Bakkerij Peeters' AS n, 9007 AS z) TO '{source}'"
        )
        assert kbo_match(core, source, target, "--name", "n", "--zipcode", "z").exit_code == 0
        rows = connection.execute(
            f"SELECT id, typeof(id), kbo_number, kbo_certain FROM '{target}'"
        ).fetchall()
        assert rows == [(7, "INTEGER", PEETERS, True)]
    empty = write_csv(tmp_path / "empty.csv", [])
    assert "0 lines" in kbo_match(core, empty, tmp_path / "o.csv", *COLUMNS).stdout
    assert (tmp_path / "o.csv").read_text().startswith("Klant,Naam,Postcode,BTW,kbo_number,")


@pytest.mark.parametrize(
    ("lines", "arguments", "why"),
    [
        ("Naam\nx\n", ("in.csv", "out.txt", "--name", "Naam"), "ends in .csv or .parquet"),
        ("Naam\nx\n", ("in.csv", "out.csv", "--name", "Name"), "no column 'Name'; there are Naam"),
        ("Naam,kbo_why\nx,y\n", ("in.csv", "out.csv", "--name", "Naam"), "has a column kbo_why"),
        (None, ("in.csv", "out.csv", "--name", "Naam"), "cannot be read"),
        ("\0\1", ("in.parquet", "out.csv", "--name", "Naam"), "cannot be read"),
    ],
)
def test_what_cannot_be_matched_is_refused_and_nothing_is_written(
    core: Core,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: str | None,
    arguments: tuple[str, ...],
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if lines is not None:
        Path(arguments[0]).write_text(lines)
    result = kbo_match(core, *arguments)
    assert result.exit_code == 1 and why in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not Path(arguments[1]).exists()


def test_a_stopped_one_goes_on_and_a_changed_one_starts_anew(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(match_file_module, "PIECE", 10)
    settings = load_settings(core.settings, root=tmp_path)
    lines = [(str(n), f"Bakkerij Peeters {n}", "9007", "") for n in range(25)]
    source, target = write_csv(tmp_path / "in.csv", lines), tmp_path / "out.csv"
    columns = Columns("Naam", "Postcode")
    seen: list[int] = []

    class StoppedError(Exception):
        pass

    def stop(_: str, done: int, total: int | None) -> None:
        if done:
            raise StoppedError

    def watch(what: str, done: int, total: int | None) -> None:
        seen.append(done)

    with pytest.raises(StoppedError):
        match_file(settings, source, target, columns, report=stop)
    pieces = target.with_name("out.csv.pieces")
    done = sorted(pieces.glob("*.json"))
    assert done and not target.exists()
    first = json.loads(done[0].read_text().splitlines()[0])
    done[0].write_text(done[0].read_text().replace(first["kbo_why"], "as before", 1))
    assert match_file(settings, source, target, columns, report=watch).lines == len(lines)
    assert seen[0] >= 10 and seen[-1] == len(lines) and not pieces.exists()
    assert "as before" in target.read_text()

    with pytest.raises(StoppedError):
        match_file(settings, source, target, columns, report=stop)
    write_csv(source, lines[:3])
    assert match_file(settings, source, target, columns, report=watch).lines == 3
    assert len(target.read_text().splitlines()) == 4


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_stays_and_the_same_call_goes_on(
    core: Core, tmp_path: Path, how: signal.Signals
) -> None:
    lines = [(str(n), f"Bakerij Petrs {n}", "9007", "") for n in range(30_000)]
    source, target = write_csv(tmp_path / "in.csv", lines), tmp_path / "out.csv"
    command = [sys.executable, "-m", "kbo_pipeline.cli", "match", source, target, *COLUMNS]
    environment = {**os.environ, **core.settings}
    process = subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, env=environment)
    pieces = target.with_name("out.csv.pieces")
    deadline = time.monotonic() + 120
    while not list(pieces.glob("*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    assert process.wait(60) == (-9 if how == signal.SIGKILL else 130)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == [] and not target.exists()
    assert kbo_match(core, source, target, *COLUMNS).exit_code == 0
    assert len(target.read_text().splitlines()) == len(lines) + 1


def test_without_an_index_nothing_is_matched(core: Core, tmp_path: Path) -> None:
    shutil.copytree(core.directory, tmp_path / "core")
    bare = replace(core, directory=tmp_path / "core")
    shutil.rmtree(tmp_path / "core" / "kbo.search")
    source = write_csv(tmp_path / "in.csv", LINES)
    settings = load_settings(bare.settings, root=tmp_path)
    with pytest.raises(NotReadyError, match="there is no search index; kbo index makes it"):
        match_file(settings, source, tmp_path / "o.csv", Columns("Naam"), report=lambda *_: None)
    with (
        bare.read_register() as register,
        pytest.raises(NotReadyError, match="there is no search index; kbo index makes it"),
    ):
        register.match([])
