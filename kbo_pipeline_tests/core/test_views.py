"""The views that people ask for, by hand-made extracts; and who is left out of them."""

import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kbo_pipeline.apply.register import open_register_to_write
from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import ALL_TABLES, SECTIONS, TABLES, Privacy, divisions
from kbo_pipeline.operate.repair.doctor import check_published
from kbo_pipeline.publish.copy import copy_register, has_views, register_has_views, renew_views
from kbo_pipeline.read.views import macro_queries, view_queries
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, write_extract

FULL, UPDATE, LATER = ExtractKey(140, "full"), ExtractKey(141, "update"), ExtractKey(142, "update")
FIRM, PERSON, ONCE, BARE = "0403.170.701", "0500.000.097", "0600.000.097", "0700.000.097"
SHOP, STALL, MOVED = "2.000.000.339", "2.000.000.438", "2.000.001.032"
START = datetime.date(1990, 2, 3)


def enterprise(number: str, kind: str, form: str | None = None) -> Row:
    return (number, "AC", "000", kind, form, None, START)


def address(number: str, kind: str, zipcode: str, municipality: str) -> Row:
    names = (municipality, f"{municipality}-FR", "Kaai", "Quai")
    return (number, kind, None, None, zipcode, *names, "1", None, None, None)


CODES: list[Row] = [
    ("Status", "AC", "FR", "Actif"),
    ("Status", "AC", "NL", "Actief"),
    ("JuridicalForm", "610", "DE", "Gesellschaft"),
    ("JuridicalForm", "610", "FR", "Société"),
    ("JuridicalForm", "610", "NL", "Vennootschap"),
    ("ActivityGroup", "001", "NL", "BTW"),
    ("Classification", "MAIN", "FR", "Principale"),
    ("Nace2025", "I", "NL", "HORECA"),
    ("Nace2025", "56", "NL", "Eet- en drinkgelegenheden"),
    ("Nace2025", "56111", "FR", "Restauration"),
    ("Nace2025", "56111", "NL", "Restaurants"),
    ("Nace2025", "5611102", "NL", "Frituren"),
    ("Nace2008", "56111", "NL", "Iets anders"),
    ("Nace2003", "55301", "NL", "Oud"),
]

ROWS: dict[str, list[Row]] = {
    "enterprise": [
        enterprise(FIRM, "2", "610"),
        enterprise(PERSON, "1"),
        enterprise(ONCE, "1"),
        enterprise(BARE, "2"),
    ],
    "establishment": [(SHOP, START, FIRM), (STALL, START, PERSON), (MOVED, START, PERSON)],
    "denomination": [
        (FIRM, "1", "001", "La Firme"),
        (FIRM, "2", "001", "De Firma"),
        (FIRM, "1", "002", "LF"),
        (FIRM, "1", "003", "Au Commerce"),
        (FIRM, "2", "003", "Zaak B"),
        (FIRM, "2", "003", "Zaak A"),
        (PERSON, "0", "001", "Peeters, An"),
        (STALL, "2", "003", "Kraam"),
        (MOVED, "2", "003", "Winkel"),
    ],
    "address": [
        address(FIRM, "REGO", "9000", "Zeemeers"),
        address(SHOP, "BAET", "1005", "Zavelbeke"),
        address(STALL, "BAET", "2017", "Scheldewaard"),
        address(MOVED, "BAET", "2017", "Scheldewaard"),
    ],
    "contact": [(FIRM, "ENT", "TEL", "1"), (PERSON, "ENT", "TEL", "2"), (STALL, "EST", "TEL", "3")],
    "activity": [
        (FIRM, "001", "2003", "55301", "MAIN"),
        (FIRM, "001", "2025", "56200", "SECO"),
        (FIRM, "006", "2025", "01110", "MAIN"),
        (FIRM, "003", "2025", "56111", "MAIN"),
        (FIRM, "003", "2025", "5611102", "MAIN"),
        (SHOP, "001", "2025", "00000", "MAIN"),
        (PERSON, "001", "2008", "47999", "ANCI"),
    ],
    "branch": [("9.000.000.001", START, FIRM)],
    "code": CODES,
}


def answer(reader: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    found = reader.execute(query)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A Full; an Update by which a person becomes a legal one and gives a shop to the firm."""
    directory = tmp_path_factory.mktemp("views")
    core = Core(directory)
    core.import_zip(write_extract(directory, FULL, ROWS))
    changed: dict[str, list[Row]] = {
        "enterprise": [enterprise(ONCE, "2", "610")],
        "establishment": [(MOVED, START, FIRM)],
        "address": [address(FIRM, "REGO", "8009", "Zeemeers")],
        "code": CODES,
    }
    deleted = {"enterprise": [ONCE], "establishment": [MOVED], "address": [FIRM]}
    core.import_zip(write_extract(directory, UPDATE, changed, deleted))
    return core


def test_an_enterprise_is_one_row_with_what_the_other_tables_say(core: Core) -> None:
    with core.read() as reader:
        (found,) = answer(
            reader,
            f"SELECT * FROM current.enterprise_profile WHERE enterprise_number = '{FIRM}'",
        )
    expected = {
        "vat_number": "BE0403170701",
        "primary_name": "De Firma",
        "primary_name_language": "2",
        "primary_name_fr": "La Firme",
        "primary_name_de": None,
        "abbreviation": "LF",
        "commercial_name": "Zaak A",
        "status": "AC",
        "status_nl": "Actief",
        "status_fr": "Actif",
        "juridical_form": "610",
        "juridical_form_nl": "Vennootschap",
        "juridical_form_fr": "Société",
        "juridical_form_de": "Gesellschaft",
        "juridical_form_cac": None,
        "juridical_form_cac_nl": None,
        "juridical_situation": "000",
        "juridical_situation_nl": None,
        "start_date": START,
        "seat_zipcode": "8009",
        "seat_municipality_nl": "Zeemeers",
        "seat_street_fr": "Quai",
        "main_nace_version": "2025",
        "main_nace_code": "56111",
        "main_nace_code_nl": "Restaurants",
        "main_section": "I",
        "main_activity_group": "003",
        "main_classification": "MAIN",
        "establishments": 2,
        "public_search_url": "https://kbopub.economie.fgov.be/kbopub/toonondernemingps.html"
        "?ondernemingsnummer=0403170701",
    }
    assert found | expected == found


def test_an_enterprise_of_which_nothing_is_known_has_a_row_too(core: Core) -> None:
    with core.read() as reader:
        (found,) = answer(
            reader,
            f"SELECT * FROM current.enterprise_profile WHERE enterprise_number = '{BARE}'",
        )
    assert (found["primary_name"], found["establishments"]) == (BARE, 0)
    assert found["seat_zipcode"] is found["main_nace_code"] is found["main_section"] is None


def test_the_profile_of_an_earlier_extract_is_what_it_was_then(core: Core) -> None:
    with core.read() as reader:
        query = f"FROM enterprise_profile_at({{}}) WHERE enterprise_number = '{FIRM}'"
        (before,), (after,) = (answer(reader, query.format(number)) for number in (140, 141))
        (now,) = answer(
            reader, f"FROM current.enterprise_profile WHERE enterprise_number = '{FIRM}'"
        )
    assert (before["seat_zipcode"], before["establishments"]) == ("9000", 1)
    assert after == now


def test_all_made_up_enterprises_have_one_profile(tmp_path: Path) -> None:
    core = Core(tmp_path)
    core.import_zip(Sample(enterprises=1200, seed=3).write_full(tmp_path, 140))
    with core.read() as reader:
        ((rows, numbers, named, situated),) = reader.execute(
            "SELECT count(*), count(DISTINCT enterprise_number), count(primary_name),"
            " count(seat_zipcode) FROM current.enterprise_profile"
        ).fetchall()
        ((seats,),) = reader.execute(
            "SELECT count(zipcode) FROM current.address WHERE type_of_address = 'REGO'"
        ).fetchall()
    assert rows == numbers == named == 1200
    assert situated == seats > 100


def test_activities_are_told_in_words_of_their_own_version(core: Core) -> None:
    with core.read() as reader:
        found = answer(
            reader,
            "SELECT nace_version, nace_code, nace_code_nl, nace_code_fr, activity_group_nl,"
            " classification_fr, division, division_nl, section, section_nl"
            f" FROM current.activity_described WHERE entity_number = '{FIRM}'"
            " ORDER BY nace_version, nace_code",
        )
    by_code = {(row["nace_version"], row["nace_code"]): row for row in found}
    assert len(found) == 5
    assert by_code["2025", "56111"] == {
        "nace_version": "2025",
        "nace_code": "56111",
        "nace_code_nl": "Restaurants",
        "nace_code_fr": "Restauration",
        "activity_group_nl": None,
        "classification_fr": "Principale",
        "division": "56",
        "division_nl": "Eet- en drinkgelegenheden",
        "section": "I",
        "section_nl": "HORECA",
    }
    assert by_code["2003", "55301"]["section"] == "H"
    assert by_code["2003", "55301"]["section_nl"] is None  # the letter of another version
    assert by_code["2025", "56200"]["nace_code_nl"] is None
    assert by_code["2025", "56200"]["section"] == "I"


def test_nace_is_a_tree(core: Core) -> None:
    with core.read() as reader:
        found = reader.execute(
            "SELECT nace_code, level, parent_code, division, section FROM current.nace"
            " WHERE nace_version = '2025' ORDER BY nace_code"
        ).fetchall()
        described = reader.execute(
            "SELECT nace_version, description_nl, description_fr FROM current.nace"
            " WHERE nace_code = '56111' ORDER BY ALL"
        ).fetchall()
    assert found == [
        ("56", "division", "I", "56", "I"),
        ("56111", "subclass", "5611", "56", "I"),
        ("5611102", "detail", "56111", "56", "I"),
        ("I", "section", None, None, "I"),
    ]
    assert described == [("2008", "Iets anders", None), ("2025", "Restaurants", "Restauration")]


def test_sections_follow_each_other_without_a_division_in_two() -> None:
    counts = {version: len(sections) for version, sections in SECTIONS.items()}
    assert counts == {"2003": 17, "2008": 21, "2025": 22}
    for sections in SECTIONS.values():
        letters = [letter for letter, _, _ in sections]
        assert letters == [chr(ord("A") + place) for place in range(len(letters))]
        bounds = [bound for _, first, last in sections for bound in (first, last)]
        assert bounds == sorted(bounds)
    places = [(version, division) for version, division, _ in divisions()]
    assert len(places) == len(set(places))


def test_the_source_names_the_newest_extract_and_its_date(core: Core) -> None:
    with core.read() as reader:
        (found,) = answer(reader, "FROM current.source")
    assert found == {
        "extract": "0141-update",
        "extract_number": 141,
        "snapshot_date": datetime.date(2025, 5, 22),
        "source": "Source: KBO Open Data, FPS Economy; data of 2025-05-22",
        "privacy": "full",
        "proven_extract_number": None,
        "proven_at": None,
    }


@pytest.fixture
def legal_persons(core: Core, tmp_path: Path) -> Core:
    """The same register, its views without natural persons."""
    copy = Core(tmp_path)
    if copy.shared is not None:
        with duckdb.connect(":memory:") as connection:
            copy_register(connection, core.readers, copy.shared, privacy="legal-persons")
        return copy
    copy.database.write_bytes(core.database.read_bytes())
    assert renew_views(copy.database, "legal-persons")
    return copy


def shows(core: Core, privacy: Privacy) -> bool:
    """Tells whether the views are those of a setting."""
    if core.shared is None:
        return has_views(core.database, privacy)
    with (
        duckdb.connect(":memory:") as connection,
        open_register_to_write(connection, core.shared) as register,
    ):
        return register_has_views(register, privacy)


def test_natural_persons_and_what_belonged_to_them_are_left_out(legal_persons: Core) -> None:
    hidden = {PERSON, ONCE, STALL, MOVED}
    with legal_persons.read() as reader:
        for name in (*view_queries("full"), *macro_queries("full")):
            for number in (140, 141):
                rows = reader.execute(_called(name, number)).fetchall()
                assert not {value for row in rows for value in row} & hidden, name
        assert shown_numbers(reader, "current.enterprise_profile") == {FIRM, BARE}
        assert shown_numbers(reader, "enterprise_at(140)") == {FIRM, BARE}
        assert shown_numbers(reader, "current.establishment") == {SHOP}
        assert shown_numbers(reader, "address_changes(141)") == {FIRM}
        assert shown_numbers(reader, "current.branch") == {"9.000.000.001"}
        (profile,) = answer(
            reader, f"FROM current.enterprise_profile WHERE enterprise_number = '{FIRM}'"
        )
        assert profile["establishments"] == 1
        (source,) = answer(reader, "FROM current.source")
        assert source["privacy"] == "legal-persons"


def shown_numbers(reader: duckdb.DuckDBPyConnection, source: str) -> set[str]:
    key = "COLUMNS('^(enterprise_number|entity_number|establishment_number|id)$')"
    first = reader.execute(f"SELECT {key} FROM {source}").fetchall()
    return {row[0] for row in first}


def _called(name: str, number: int) -> str:
    is_macro = name in macro_queries("full")
    return f"FROM {name}({number})" if is_macro else f'FROM "current".{name}'


def test_the_tables_stay_complete_and_so_does_the_hash(core: Core, legal_persons: Core) -> None:
    assert legal_persons.content_hash() == core.content_hash()
    with legal_persons.read() as reader:
        assert shown_numbers(reader, "main.enterprise") == {FIRM, PERSON, ONCE, BARE}


def test_where_all_are_shown_nothing_is_missing(core: Core) -> None:
    with core.read() as reader:
        assert shown_numbers(reader, "current.enterprise") == {FIRM, PERSON, ONCE, BARE}
        for table in ALL_TABLES:
            ((there,),) = reader.execute(
                f"SELECT count(*) FROM main.{table.name} WHERE _is_current"
            ).fetchall()
            ((seen,),) = reader.execute(f'SELECT count(*) FROM "current".{table.name}').fetchall()
            assert (table.name, seen) == (table.name, there)


@pytest.mark.parametrize("privacy", ["full", "legal-persons"])
def test_publishing_and_rolling_back_make_the_views_of_the_setting(
    tmp_path: Path, privacy: Privacy
) -> None:
    core = Core(tmp_path, privacy=privacy)
    core.import_zip(write_extract(tmp_path, FULL, ROWS))
    assert shows(core, privacy)
    update: dict[str, list[Row]] = {"code": CODES, "contact": [(FIRM, "ENT", "WEB", "x")]}
    core.import_zip(write_extract(tmp_path, UPDATE, update))
    assert shows(core, privacy)
    core.rollback(UPDATE)
    assert shows(core, privacy)
    with core.read() as reader:
        assert (PERSON in shown_numbers(reader, "current.contact")) == (privacy == "full")
        (source,) = answer(reader, "FROM current.source")
    assert (source["extract"], source["privacy"]) == ("0140-full", privacy)


@pytest.mark.file_only("views of a lake are made by its writer")
def test_views_are_made_anew_once_and_doctor_says_when_it_is_due(
    core: Core, tmp_path: Path
) -> None:
    database = tmp_path / "kbo.duckdb"
    database.write_bytes(core.database.read_bytes())
    settings = {"KBO_DATA_DIR": str(tmp_path), "KBO_PRIVACY": "legal-persons"}

    def said() -> list[str]:
        found = check_published(load_settings(settings, tmp_path))
        return [finding.text for finding in found if finding.subject == "views"]

    (line,) = said()
    assert "another KBO_PRIVACY than legal-persons" in line
    assert renew_views(database, "legal-persons")
    assert said() == []
    before = database.stat()
    assert not renew_views(database, "legal-persons")
    assert database.stat() == before
    assert not renew_views(tmp_path / "none.duckdb", "full")


@pytest.mark.file_only("views of a lake are made by its writer")
def test_views_of_a_file_from_before_there_were_such_are_made_anew(
    core: Core, tmp_path: Path
) -> None:
    database = tmp_path / "kbo.duckdb"
    database.write_bytes(core.database.read_bytes())
    with duckdb.connect(str(database)) as connection:
        for name in view_queries("full"):
            connection.execute(f'DROP VIEW "current".{name}')
    assert not has_views(database, "full")
    assert renew_views(database, "full")
    with duckdb.connect(str(database), read_only=True) as reader:
        assert len(answer(reader, "FROM current.enterprise_profile")) == 4


@pytest.mark.file_only("a lake is no file")
def test_a_file_that_is_no_register_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "kbo.duckdb"
    file.write_bytes(b"no DuckDB file" * 1000)
    with pytest.raises(RegisterError, match=r"kbo\.duckdb: .*move it away"):
        renew_views(file, "full")
    assert file.read_bytes() == b"no DuckDB file" * 1000


def test_each_table_has_its_view_and_macros() -> None:
    assert {table.name for table in ALL_TABLES} < view_queries("full").keys()
    expected = {f"{table.name}_{what}" for table in TABLES for what in ("at", "changes")}
    assert expected < macro_queries("full").keys()
