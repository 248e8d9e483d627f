"""`KBO_PRIVACY=legal-persons` shows whom the register knows to be a legal person, nobody else."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from kbo_pipeline.cli import main
from kbo_pipeline.core.errors import NotFoundError, RegisterError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import ALL_TABLES, TABLES
from kbo_pipeline.publish.copy import renew_views
from kbo_pipeline.read.export import write_export
from kbo_pipeline.read.published import show_to_reader
from kbo_pipeline.read.register import read_register
from kbo_pipeline.read.report import make_report
from kbo_pipeline.read.state_sql import HIDDEN_BEFORE, SHOWN
from kbo_pipeline.read.views import create_views, macro_queries, view_queries
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, write_extract

START = datetime.date(2001, 2, 3)
FIRM = "0400.000.086"
SHOP, OFFICE = "2.000.000.339", "9.000.000.001"
TYPES: dict[str, str | None] = {
    "0200.000.001": "1",
    "0200.000.002": "0",
    "0200.000.003": None,
    "0200.000.004": "3",
    "0200.000.005": "22",
    "0200.000.006": "02",
    "0200.000.007": "X",
}
BECAME_LEGAL, WAS_LEGAL, GONE = "0200.000.008", "0200.000.009", "0200.000.010"
NOBODY = "0999.999.922"
"""An enterprise that is in no extract."""
STRAY_UNIT, STRAY_BRANCH, STRAY_ENTERPRISE = "2.999.999.901", "9.999.999.901", "0888.888.826"
"""Numbers of which there is no row but names, addresses and so on."""
MOVED_TO, MOVED_FROM = "2.000.000.901", "2.000.000.902"
UNKNOWN = (*TYPES, BECAME_LEGAL, WAS_LEGAL, GONE, STRAY_ENTERPRISE)


def unit_of(number: str) -> str:
    return f"2{number[1:]}".replace("2200.", "2.100.")


def branch_of(number: str) -> str:
    return f"9{number[1:]}".replace("9200.", "9.100.")


def enterprise(number: str, kind: str | None) -> Row:
    return (number, "AC", "000", kind, None, None, START)


def parts_of(number: str, mark: str) -> dict[str, Row]:
    """What may be said of a number in the tables without a row for each entity."""
    place = (
        None,
        None,
        "1000",
        f"Stad {mark}",
        None,
        f"Straat {mark}",
        None,
        "1",
        None,
        None,
        None,
    )
    return {
        "denomination": (number, "2", "003" if number[0] in "29" else "001", f"Naam {mark}"),
        "address": (number, "REGO", *place),
        "contact": (number, "ENT", "TEL", f"Telefoon {mark}"),
        "activity": (number, "001", "2025", "10710", "MAIN"),
    }


def rows() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {table.name: [] for table in TABLES}

    def add(number: str, mark: str) -> None:
        for name, row in parts_of(number, mark).items():
            found[name].append(row)

    kinds = TYPES | {FIRM: "2", BECAME_LEGAL: "0", WAS_LEGAL: "2", GONE: "0"}
    for number, kind in kinds.items():
        found["enterprise"].append(enterprise(number, kind))
        unit, branch = (SHOP, OFFICE) if number == FIRM else (unit_of(number), branch_of(number))
        found["establishment"].append((unit, START, number))
        found["branch"].append((branch, START, number))
        for one in (number, unit, branch):
            add(one, "open" if number == FIRM else "geheim")
    found["establishment"] += [
        ("2.000.000.903", START, NOBODY),
        (MOVED_TO, START, next(iter(TYPES))),
        (MOVED_FROM, START, FIRM),
    ]
    found["branch"].append(("9.000.000.903", START, NOBODY))
    for stray in (STRAY_UNIT, STRAY_BRANCH, STRAY_ENTERPRISE, NOBODY, "2.000.000.903"):
        add(stray, "geheim")
    add(MOVED_TO, "geheim")
    add(MOVED_FROM, "geheim")
    return found


SECRET_NUMBERS = {
    *UNKNOWN,
    NOBODY,
    *map(unit_of, UNKNOWN),
    *map(branch_of, UNKNOWN),
    STRAY_UNIT,
    STRAY_BRANCH,
    MOVED_TO,
    MOVED_FROM,
    "2.000.000.903",
    "9.000.000.903",
}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A Full; an Update that changes types and owners."""
    directory = tmp_path_factory.mktemp("legal")
    core = Core(directory / "core", batch_rows=1000, privacy="legal-persons")
    core.import_zip(write_extract(directory, ExtractKey(140, "full"), rows()))
    inserts: dict[str, list[Row]] = {
        "enterprise": [enterprise(BECAME_LEGAL, "2"), enterprise(WAS_LEGAL, None)],
        "establishment": [(MOVED_TO, START, FIRM), (MOVED_FROM, START, NOBODY)],
        "contact": [
            (number, "ENT", "WEB", "geheim") for number in (*TYPES, BECAME_LEGAL, STRAY_UNIT)
        ],
    }
    inserts["contact"].append((FIRM, "ENT", "WEB", "open"))
    deletes = {
        "enterprise": [BECAME_LEGAL, WAS_LEGAL, GONE],
        "establishment": [MOVED_TO, MOVED_FROM],
        "contact": [*TYPES, BECAME_LEGAL, STRAY_UNIT, FIRM],
    }
    core.import_zip(write_extract(directory, ExtractKey(141, "update"), inserts, deletes))
    return core


def leaks(text: str) -> set[str]:
    """What must not be told, of a text."""
    told = {
        number for number in SECRET_NUMBERS if number in text or number.replace(".", "") in text
    }
    return told | ({"geheim"} if "geheim" in text else set())


def test_whom_nobody_knows_to_be_a_legal_person_is_in_no_view_or_macro(core: Core) -> None:
    with core.read() as reader:
        for name in (*view_queries("full"), *macro_queries("full")):
            for number in (140, 141):
                is_macro = name in macro_queries("full")
                source = f"{name}({number})" if is_macro else f'"current".{name}'
                found = reader.execute(f"FROM {source}").fetchall()
                assert leaks(str(found)) == set(), name


def test_legal_persons_and_what_is_theirs_are_all_there(core: Core) -> None:
    with core.read() as reader:
        for table in TABLES:
            keys = reader.execute(f'SELECT {table.key} FROM "current".{table.name}').fetchall()
            expected = {"enterprise": {FIRM}, "establishment": {SHOP}, "branch": {OFFICE}}
            assert {key for (key,) in keys} == expected.get(table.name, {FIRM, SHOP, OFFICE})
        assert reader.execute('SELECT count(*) FROM "current".enterprise_profile').fetchall() == [
            (1,)
        ]
        hidden = reader.execute("SELECT count(*) FROM main.denomination").fetchall()
        assert hidden[0][0] > 30  # the tables stay whole


def test_they_are_found_shown_and_told_of_nowhere(core: Core) -> None:
    with core.read_register() as register:
        for found in (
            register.find("naam", limit=100),
            register.find(zipcode="1000", limit=100),
            register.find(nace="10710", nace_version="2025", limit=100),
        ):
            assert [match.enterprise_number for match in found] == [FIRM]
        for number in sorted(SECRET_NUMBERS):
            for at in (140, 141):
                with pytest.raises(NotFoundError) as caught:
                    register.enterprise(number, at)
                assert "geheim" not in str(caught.value)
        for at in (140, 141):
            assert leaks(str(register.enterprise(FIRM, at))) == set()
            assert leaks(str(list(register.changes(at)))) == set()
        kinds = {(change.table, change.kind) for change in register.changes(141)}
        assert {table for table, _ in kinds} == {"contact"}
        assert sum(register.count_changes(141).values()) == 1


@pytest.fixture
def whole(core: Core, tmp_path: Path) -> Iterator[Path]:
    """The same register, in whose views everybody is: an export goes by the setting."""
    if core.shared is not None:
        pytest.skip("a file is copied")
    file = tmp_path / "kbo.duckdb"
    file.write_bytes(core.database.read_bytes())
    yield file


def test_an_export_leaves_them_out(core: Core, whole: Path, tmp_path: Path) -> None:
    variables = {
        "KBO_DATA_DIR": str(tmp_path / "data"),
        "KBO_DATABASE": str(whole),
        "KBO_PRIVACY": "legal-persons",
    }
    with duckdb.connect(str(whole)) as connection:
        connection.execute(f"DROP TABLE {SHOWN}")  # it makes its own
    made = write_export(load_settings(variables, tmp_path), tmp_path / "export")
    for name in made.tables:
        file = tmp_path / "export" / f"{name}.parquet"
        assert leaks(str(duckdb.execute(f"FROM '{file}'").fetchall())) == set()
    assert made.tables["enterprise"].rows == 1


def test_readers_refuse_views_of_everybody_once_the_setting_leaves_them_out(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KBO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KBO_DATABASE", str(whole))
    monkeypatch.setenv("KBO_PRIVACY", "legal-persons")
    with read_register() as register:
        assert register.find("geheim") == []
    with duckdb.connect(str(whole)) as connection:
        for statement in create_views("full"):
            connection.execute(statement)
    with pytest.raises(
        RegisterError, match=r"views show natural persons too.* kbo rebuild recreates them$"
    ):
        read_register()
    for words in (["find", "geheim"], ["show", WAS_LEGAL], ["changes", "141"]):
        done = CliRunner().invoke(main, words)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith(f"kbo: {whole}: its views show natural persons too")
    doctor = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert doctor["source"]["extract"] == "0141-update"
    monkeypatch.setenv("KBO_PRIVACY", "full")
    with read_register() as register:
        assert register.find("geheim") != []
    assert renew_views(whole, "legal-persons")
    monkeypatch.setenv("KBO_PRIVACY", "legal-persons")
    with read_register() as register:
        assert register.find("geheim") == []


def test_a_change_report_leaves_them_out(core: Core, whole: Path, tmp_path: Path) -> None:
    variables = {"KBO_DATA_DIR": str(tmp_path / "data"), "KBO_DATABASE": str(whole)}
    settings = load_settings(variables | {"KBO_PRIVACY": "legal-persons"}, tmp_path)
    with duckdb.connect(":memory:") as connection:
        report = make_report(connection, settings, ExtractKey(141, "update"))
    assert leaks(str(report)) == set()
    listed = duckdb.execute(f"FROM '{tmp_path}/data/**/*.parquet'").fetchall()
    assert len(listed) == 1
    assert leaks(json.dumps(listed, default=str)) == set()


def test_views_of_an_earlier_version_are_not_trusted(core: Core, whole: Path) -> None:
    """They leave out natural persons alone; reading such a file leaves out the others too."""
    with duckdb.connect(str(whole)) as connection:
        connection.execute(f"DROP TABLE {SHOWN}")
        for name in view_queries("full"):
            connection.execute(f'DROP VIEW "current".{name}')
        connection.execute(
            f"CREATE TABLE {HIDDEN_BEFORE} AS SELECT '{next(iter(TYPES))}' AS number"
        )
        for table in ALL_TABLES:
            connection.execute(f'CREATE VIEW "current".{table.name} AS FROM main.{table.name}')
    with read_register(whole) as register:
        assert [match.enterprise_number for match in register.find("naam")] == [FIRM]
        assert register.state("enterprise").count("*").fetchall() == [(1,)]
        for number in sorted(SECRET_NUMBERS):
            with pytest.raises(NotFoundError):
                register.enterprise(number)
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"ATTACH '{whole}' AS other (READ_ONLY)")
        assert show_to_reader(connection, "other", DuckDBFile(whole)) != "other"
