"""Opening the published register, and enterprises in it with all that belongs to them."""

import datetime
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import kbo_pipeline
from kbo_pipeline.core.errors import ExtractError, NotFoundError, RegisterError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES
from kbo_pipeline.read.register import PublishedRegister, read_register
from kbo_pipeline.read.types import HistoryEvent, PublishedExtract, named, state_at
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline_tests.support.bakery import (
    BAKER,
    BEGAN,
    BRANCH,
    FOREIGN,
    HOSTILE,
    LATE,
    MILL,
    OVEN,
    PERSON,
    SHOP,
    STALL,
    leave_out,
    make_bakery,
)
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, snapshot_date, write_extract


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory) -> Core:
    return make_bakery(tmp_path_factory.mktemp("bakery"))


@pytest.fixture
def database(bakery: Core) -> Path:
    return bakery.database


@pytest.fixture
def register(bakery: Core) -> Iterator[PublishedRegister]:
    with bakery.read_register() as register:
        yield register


def test_the_register_says_what_it_holds(register: PublishedRegister) -> None:
    assert [e.key for e in register.extracts] == ["0142-update", "0141-update", "0140-full"]
    newest = register.extracts[0]
    assert (newest.number, newest.type, newest.snapshot_date) == (142, "update", snapshot_date(142))
    assert register.source == "Source: KBO Open Data, FPS Economy; data of 2025-05-23"
    assert register.extract() == newest
    assert register.extract(141) == register.extract("141") == register.extract("0141-update")


def test_without_a_path_the_register_of_the_settings_is_opened(
    bakery: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in bakery.settings.items():
        monkeypatch.setenv(name, value)
    with read_register() as register:
        assert register.place == bakery.readers


def test_what_is_no_register_is_an_error_of_one_line(tmp_path: Path) -> None:
    missing, text, other = tmp_path / "none", tmp_path / "it's", tmp_path / "other.duckdb"
    text.write_text("no database")
    duckdb.connect(str(other)).close()
    with pytest.raises(NotFoundError, match=f"^{re.escape(str(missing))}: no published register"):
        read_register(missing)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # DuckDB waits there for ever
    for file in (text, other, tmp_path, pipe):
        said = "not a file; move it away" if file in (tmp_path, pipe) else "cannot be read"
        with pytest.raises(RegisterError, match=f"^{re.escape(str(file))}: {said}") as caught:
            read_register(file)
        assert "\n" not in str(caught.value)


def test_a_register_without_extracts_is_told_from_a_full_one(tmp_path: Path) -> None:
    core = Core(tmp_path / "core")
    core.import_zip(write_extract(tmp_path, ExtractKey(140, "full"), {}))
    core.rollback(ExtractKey(140, "full"))
    with pytest.raises(NotFoundError, match="no extract is published in it"):
        core.read_register()


@pytest.mark.file_only("a file is put into the place of another")
def test_what_is_open_stays_as_it_is_and_what_is_opened_is_new(
    database: Path, tmp_path: Path
) -> None:
    file = shutil.copy(database, tmp_path / "kbo.duckdb")
    core = Core(tmp_path / "core")
    core.import_zip(write_extract(tmp_path, ExtractKey(150, "full"), {}))
    with read_register(file) as before:
        os.replace(core.database, file)
        with read_register(file) as after:
            assert (before.extracts[0].number, after.extracts[0].number) == (142, 150)
            assert before.state("enterprise").count("*").fetchall() == [(3,)]
            assert after.state("enterprise").count("*").fetchall() == [(1,)]


def test_nothing_can_be_changed(register: PublishedRegister) -> None:
    schema = register.place.schema_at_work  # where its tables are
    with pytest.raises(duckdb.InvalidInputException, match="read-only"):
        register.connection.execute(f"DELETE FROM {schema}.enterprise")


@pytest.mark.parametrize(
    "text",
    [
        BAKER,
        "0200065765",
        "200065765",
        "200.065.765",
        "BE 0200.065.765",
        "be200065765",
        "0200 065-765",
        "BTW BE 0200.065.765",
        "btw: be0200065765",
        "TVA BE0200.065.765",
        "TVA: 0200.065.765",
        "VAT BE 0200065765",
        "MwSt. BE 0200.065.765",
        "N° BCE 0200.065.765",
        "KBO nr. 0200.065.765",
        "0200 065 765 RPR Gent",
        "0200.065.765 (RPM Liège, division Namur)",
        "BE 0200.065.765, RPR Antwerpen, afdeling Hasselt",
        "RPR 0200.065.765",
        " 0200.065.765\n",
        200065765,
    ],
)
def test_a_number_may_be_written_as_people_write_it(
    register: PublishedRegister, text: str | int
) -> None:
    assert register.enterprise(text).number == BAKER


@pytest.mark.parametrize(
    ("number", "at", "enterprise"),
    [(SHOP, None, BAKER), (OVEN, 142, BAKER), (MILL, 140, BAKER), (BRANCH, 141, FOREIGN)],
)
def test_numbers_of_units_and_branches_lead_to_their_enterprise(
    register: PublishedRegister, number: str, at: int | None, enterprise: str
) -> None:
    assert register.enterprise(number.replace(".", ""), at).number == enterprise


@pytest.mark.parametrize(
    ("number", "at", "why"),
    [
        ("12", None, "is no number of an enterprise"),
        ("BTW", None, "is no number of an enterprise"),
        ("RPR Gent", None, "is no number of an enterprise"),
        ("0200.065.765 0200.068.636", None, "is no number of an enterprise"),
        ("0200.065.765 RPR 0200.068.636", None, "is no number of an enterprise"),
        ("Bakker 0200.065.765", None, "is no number of an enterprise"),
        ("BTW " * 9999, None, "is no number of an enterprise"),
        ("3200065765", None, "no such number: its last two digits would be 31"),
        ("x" * 9999, None, "is no number of an enterprise"),
        ("0200.065.766", None, "its last two digits would be 65"),
        ("2.000.000.340", None, "its last two digits would be 39"),
        ("0403.449.823", None, "in none of the extracts 0140-full to 0142-update"),
        ("9.000.000.001", None, "in none of the extracts"),
        (LATE, 140, "not in the register at extract 140; it is from 141 on"),
        (FOREIGN, None, r"it was from 140 to 141; ask for one of these \(--at 140\)"),
        (MILL, 142, "it was from 140 to 140"),
        (BAKER, 139, "139: not among the published extracts"),
        (BAKER, 143, "143: not among the published extracts"),
        (BAKER, "0141-full", "0141-full: not among the published extracts; 0141-update is"),
    ],
)
def test_an_enterprise_that_is_not_there_is_an_error_that_says_why(
    register: PublishedRegister, number: str, at: int | str | None, why: str
) -> None:
    with pytest.raises(NotFoundError, match=why) as caught:
        register.enterprise(number, at)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", ["2025-05-22", snapshot_date(141)])
def test_a_state_may_be_asked_for_by_its_date(
    register: PublishedRegister, at: str | datetime.date
) -> None:
    assert register.enterprise(BAKER, at).extract.number == register.extract(at).number == 141
    assert register.state("enterprise", at).count("*").fetchall() == [(4,)]
    assert register.count_changes(at) == register.count_changes(141)


def test_a_day_without_an_extract_has_the_state_of_the_day_before(tmp_path: Path) -> None:
    core = Core(tmp_path / "core")
    for number in (140, 143):
        core.import_zip(write_extract(tmp_path, ExtractKey(number, "full"), {}))
    day = snapshot_date(142)
    with core.read_register() as register:
        assert register.enterprise(BAKER, day).extract.number == 140
        with pytest.raises(NotFoundError, match=f"^{day}: no published extract is of that day; "):
            register.extract(day)
        for unknown in (snapshot_date(139), snapshot_date(144)):
            with pytest.raises(NotFoundError, match=f"^{unknown}: the state of that day is not"):
                register.state("enterprise", unknown)


@pytest.mark.parametrize("name", ["2025-13-01", "2025-02-30", "x", "", "2025-1-1", "140-full"])
def test_what_names_no_extract_is_refused(register: PublishedRegister, name: str) -> None:
    with pytest.raises(ExtractError):
        register.extract(name)
    with pytest.raises(ExtractError):
        register.enterprise(BAKER, name)


@pytest.mark.parametrize("name", [139, "999", "0141-full", "0999-update"])
def test_changes_of_an_extract_that_is_not_published_are_an_error(
    register: PublishedRegister, name: int | str
) -> None:
    for ask in (register.count_changes, register.changed_entities, register.changes):
        with pytest.raises(NotFoundError, match=rf"^{name}: not among the published"):
            ask(name)
    with pytest.raises(ExtractError):
        register.changes("9" * 5000)


def test_two_extracts_of_one_day_must_be_named() -> None:
    day = datetime.date(2025, 10, 5)
    extracts = [PublishedExtract(f"{n:04d}-update", n, "update", day) for n in (142, 141)]
    with pytest.raises(NotFoundError, match=r"^2025-10-05: 0141-update and 0142-update are"):
        named(extracts, day)
    assert state_at(extracts, "2025-10-05").number == 142


@pytest.mark.parametrize("language", ["en", "NL", "", None])
def test_an_unknown_language_is_refused(register: PublishedRegister, language: Any) -> None:
    with pytest.raises(NotFoundError, match=r"no language of KBO's; there are nl, fr, de$"):
        register.enterprise(BAKER, language=language)


def test_an_enterprise_has_all_that_belongs_to_it(register: PublishedRegister) -> None:
    baker = register.enterprise(BAKER)
    assert (baker.name, baker.primary_name_language) == ("Bakkerij Hemels", "2")
    assert baker.vat_number == "BE0200065765"
    assert (str(baker.status), str(baker.situation)) == ("Actief", "Opening faillissement")
    assert baker.form_cac is not None and baker.form_cac.code == str(baker.form_cac) == "616"
    assert [name.text for name in baker.names] == ["Bakkerij Hemels", "Boulangerie Céleste"]
    assert [str(a) for a in baker.addresses] == [
        "Weg 3, 9007 Leieland",
        "Kaai 1 box 2, 1005 Zavelbeke",
    ]
    assert baker.addresses[1].struck_off == datetime.date(2020, 1, 1)
    assert baker.seat == baker.addresses[0]
    assert {contact.value for contact in baker.contacts} == {"02 055 01 99", HOSTILE}
    assert [(u.number, u.name, u.start_date) for u in baker.establishments] == [
        (SHOP, "De Gouden Korst", BEGAN),
        (OVEN, OVEN, BEGAN),
    ]
    assert str(baker.establishments[0].addresses[0]) == "Kaai 5, Hal, 1005 Zavelbeke"
    assert baker.branches == ()
    branch = register.enterprise(FOREIGN, 140).branches[0]
    assert (branch.number, branch.name) == (BRANCH, "Crumbs Belgique")


def test_the_newest_version_of_nace_comes_first_and_main_activities_in_it(
    register: PublishedRegister,
) -> None:
    found = register.enterprise(BAKER).activities
    assert [(a.nace_version, a.nace and str(a.nace)) for a in found] == [
        ("2025", "Brood"),
        ("2025", "Détail de pain"),
        ("2008", "Brood, zoals het in 2008 heette"),
    ]
    assert [str(a.classification) for a in found] == ["Hoofdactiviteit", "SECO", "Hoofdactiviteit"]


def test_codes_and_places_are_told_in_the_language_that_was_asked_for_or_another(
    register: PublishedRegister,
) -> None:
    french, german = (register.enterprise(BAKER, 140, language) for language in ("fr", "de"))
    assert (str(french.situation), str(german.situation)) == (
        "Situation normale",
        "Normaler Zustand",
    )
    assert (str(french.status), str(german.status)) == ("Actif", "Actief")
    assert str(french.form) == "Aktiengesellschaft"
    assert str(french.type) == "Rechtspersoon"
    assert [str(e.seat) for e in (french, german)] == ["Voie 3, 9007 Pays"] * 2
    stall = register.enterprise(PERSON, language="fr").establishments[0]
    assert str(stall.addresses[0]) == "Plein 1, 2017 Marché"


def test_an_enterprise_is_shown_as_it_was(register: PublishedRegister) -> None:
    before = register.enterprise(BAKER, at=140)
    assert (before.name, str(before.situation)) == ("Boulangerie Céleste", "Normale toestand")
    assert [name.text for name in before.names] == ["Boulangerie Céleste", "Koek & Zoon", "BC"]
    assert [unit.number for unit in before.establishments] == [SHOP, MILL]
    assert before.extract.key == "0140-full"
    assert [event.extract_number for event in before.history] == [140]


def test_history_tells_what_changed_and_once(register: PublishedRegister) -> None:
    def told(event: HistoryEvent) -> tuple[object, ...]:
        return (event.change, event.table, event.entity_number, event.before, event.after)

    *newer, oldest = register.enterprise(BAKER).history
    assert {(e.extract_number, e.snapshot_date) for e in newer} == {(141, snapshot_date(141))}
    assert [told(event) for event in newer] == [
        ("changed", "enterprise", BAKER, "Normale toestand", "Opening faillissement"),
        ("removed", "establishment", MILL, f"2001-02-03, {BAKER}", None),
        ("added", "establishment", OVEN, None, f"2001-02-03, {BAKER}"),
        ("removed", "denomination", BAKER, "2, 002, BC", None),
        ("removed", "denomination", BAKER, "2, 003, Koek & Zoon", None),
        ("added", "denomination", BAKER, None, "2, 001, Bakkerij Hemels"),
    ]
    assert told(oldest)[:3] == ("added", "enterprise", BAKER)


@pytest.mark.file_only("views of a file are made anew by hand")
def test_who_may_not_be_shown_is_said_to_be_left_out_and_shows_nowhere(
    database: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(database, tmp_path / "kbo.duckdb"))
    leave_out(file, [OVEN, MILL])  # PERSON and STALL go by themselves
    with read_register(file) as register:
        for number in (PERSON, STALL, OVEN):
            with pytest.raises(NotFoundError, match=rf"^{number}: left out by KBO_PRIVACY$"):
                register.enterprise(number)
        with pytest.raises(NotFoundError, match=rf"^{MILL}: left out by KBO_PRIVACY$"):
            register.enterprise(MILL)
        baker = register.enterprise(BAKER)
        assert [unit.number for unit in baker.establishments] == [SHOP]
        assert {OVEN, MILL}.isdisjoint(event.entity_number for event in baker.history)
        assert register.find("anna") == register.find(zipcode="2017") == []
        assert register.find(nace="47811") == []
        assert [m.enterprise_number for m in register.find("celeste")] == [BAKER]
        assert {c.entity_number for c in register.changes(140)} == {BAKER, SHOP, FOREIGN, BRANCH}


def test_an_enterprise_may_have_more_units_than_one_statement_asks_for(tmp_path: Path) -> None:
    units = [f"2.{n // 1000:03d}.{n % 1000:03d}.000" for n in range(1200)]
    rows: dict[str, list[Row]] = {
        "enterprise": [(BAKER, "AC", "000", "2", None, None, None)],
        "establishment": [(unit, None, BAKER) for unit in units],
        "denomination": [(unit, "2", "003", f"Filiaal {unit}") for unit in units],
    }
    core = Core(tmp_path / "core", batch_rows=100_000)
    core.import_zip(write_extract(tmp_path, ExtractKey(140, "full"), rows))
    with core.read_register() as register:
        found = register.enterprise(units[-1]).establishments
    assert [(u.number, u.name) for u in found] == [(unit, f"Filiaal {unit}") for unit in units]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A Full and two Updates of made-up enterprises."""
    directory = tmp_path_factory.mktemp("made_up")
    core = Core(directory / "core", batch_rows=10_000)
    for file in write_sample(directory, Sample(enterprises=60, seed=3), updates=3)[:-1]:
        core.import_zip(file)
    return core


def test_enterprises_agree_with_the_macros_at_every_extract(made_up: Core) -> None:
    compared = 0
    with made_up.read_register() as register:
        for extract in register.extracts:
            rows = {
                table.name: register.state(table.name, extract.number).fetchall()
                for table in ALL_TABLES
            }
            count = {name: Counter(row[0] for row in of_table) for name, of_table in rows.items()}
            for number, *_, name, language, _, _, _ in rows["enterprise"][::3]:
                found = register.enterprise(number, extract.number)
                assert (found.name, found.primary_name_language) == (name, language)
                units = {row[0] for row in rows["establishment"] if row[2] == number}
                assert {unit.number for unit in found.establishments} == units
                for entity in (found, *found.establishments, *found.branches):
                    assert len(entity.names) == count["denomination"][entity.number]
                    assert len(entity.addresses) == count["address"][entity.number]
                    assert len(entity.contacts) == count["contact"][entity.number]
                    assert len(entity.activities) == count["activity"][entity.number]
                compared += 1
    assert compared > 60


def test_the_state_of_a_table_is_a_relation_that_is_read_when_it_is_asked(
    register: PublishedRegister,
) -> None:
    names = register.state("denomination", at=140).filter("language = '4'").fetchall()
    assert names == [(FOREIGN, "4", "001", "Crumbs Ltd")]
    assert register.state("denomination").filter("language = '4'").fetchall() == []
    with pytest.raises(NotFoundError, match=r"^'import_jobs': no table of the register; there are"):
        register.state("import_jobs")
    with pytest.raises(NotFoundError, match=r"^999: not among"):
        register.state("activity", at=999)


def test_an_enterprise_is_plain_values_for_programs(register: PublishedRegister) -> None:
    found = register.enterprise(BAKER).to_json()
    assert found["vat_number"] == "BE0200065765"
    assert found["status"] == {"code": "AC", "text": "Actief"}
    assert found["establishments"][0]["addresses"][0]["zipcode"] == "1005"
    assert found["source"].startswith("Source: KBO Open Data")
    assert kbo_pipeline.Enterprise.__name__ == "Enterprise"
