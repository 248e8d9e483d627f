"""The views for those who send invoices: to whom, and who is no longer there."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import Privacy
from kbo_pipeline.read.views import ACTIVITY_GROUPS, create_views
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, snapshot_date, write_extract

FIRM, PERSON, STRUCK_OFF, BARE = "0403.170.701", "0500.000.097", "0600.000.097", "0700.000.097"
LEFT, MOVED_OUT, CAME_BACK = "0200.065.765", "1200.068.636", "0200.171.970"
SHOP, CLOSED, OLD, OLDER, UNDATED = (f"2.000.00{n}.000" for n in range(1, 6))
DAY = datetime.date(2010, 5, 6)


def enterprise(number: str, kind: str = "2", situation: str = "000") -> Row:
    return (number, "AC", situation, kind, "610", "616", DAY)


def address(number: str, kind: str, street: str, struck_off: datetime.date | None = None) -> Row:
    place = ("1000", "Brussel", "Bruxelles", street, None, "1", "2", "Hal")
    return (number, kind, "Land", "Pays", *place, struck_off)


ROWS: dict[str, list[Row]] = {
    "enterprise": [
        enterprise(FIRM),
        enterprise(PERSON, "1"),
        enterprise(STRUCK_OFF),
        enterprise(BARE),
        enterprise(LEFT),
        enterprise(MOVED_OUT, "1"),
        enterprise(CAME_BACK),
    ],
    "establishment": [
        (SHOP, datetime.date(1980, 1, 1), FIRM),
        (CLOSED, datetime.date(1990, 1, 1), PERSON),
        (OLD, datetime.date(2001, 1, 1), PERSON),
        (OLDER, datetime.date(2000, 1, 1), PERSON),
        (UNDATED, None, PERSON),
    ],
    "denomination": [
        (FIRM, "1", "001", "La Firme"),
        (FIRM, "2", "001", "De Firma"),
        (PERSON, "0", "001", "Peeters, An"),
        (LEFT, "2", "001", "Vertrokken"),
        (MOVED_OUT, "0", "001", "Janssens, Jo"),
    ],
    "address": [
        address(FIRM, "REGO", "Oud", DAY),
        address(FIRM, "REGO", "Zetel"),
        address(SHOP, "BAET", "Winkel"),
        address(CLOSED, "BAET", "Gesloten", DAY),
        address(OLD, "BAET", "Jonger"),
        address(OLDER, "BAET", "Oudste"),
        address(UNDATED, "BAET", "Zonder datum"),
        address(STRUCK_OFF, "REGO", "Doorgehaald", DAY),
    ],
    "activity": [
        (FIRM, "001", "2025", "56111", "MAIN"),
        (FIRM, "003", "2025", "56111", "MAIN"),
        (SHOP, "006", "2025", "56111", "SECO"),
        (OLD, "007", "2025", "85100", "MAIN"),
        (BARE, "099", "2025", "56111", "MAIN"),
    ],
    "code": [("JuridicalForm", "610", "NL", "Vennootschap")],
}


def updates() -> Iterator[tuple[int, dict[str, list[Row]], dict[str, list[str]]]]:
    """One renamed and in another situation; three gone, one of them nameless; one back."""
    changed = {"enterprise": [enterprise(LEFT, situation="012")]}
    changed["denomination"] = [(LEFT, "2", "001", "Later"), (LEFT, "1", "001", "Plus tard")]
    yield 141, changed, {"enterprise": [LEFT], "denomination": [LEFT, MOVED_OUT]}
    yield 142, {}, {"enterprise": [LEFT, CAME_BACK], "denomination": [LEFT]}
    yield 143, {"enterprise": [enterprise(CAME_BACK)]}, {"enterprise": [MOVED_OUT]}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    directory = tmp_path_factory.mktemp("invoicing")
    core = Core(directory / "core", batch_rows=1000)
    core.import_zip(write_extract(directory, ExtractKey(140, "full"), ROWS))
    for number, inserts, deletes in updates():
        rows = inserts | {"code": ROWS["code"]}
        core.import_zip(write_extract(directory, ExtractKey(number, "update"), rows, deletes))
    return core


@pytest.fixture(scope="module")
def reader(core: Core) -> Iterator[duckdb.DuckDBPyConnection]:
    with core.read() as connection:
        yield connection


def answers(reader: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    result = reader.execute(query)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def invoicing(reader: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    rows = answers(reader, "FROM current.invoicing")
    assert len(rows) == len({row["enterprise_number"] for row in rows})
    return {row["enterprise_number"]: row for row in rows}


def test_each_current_enterprise_has_an_identifier_name_form_and_address(
    reader: duckdb.DuckDBPyConnection,
) -> None:
    rows = invoicing(reader)
    assert rows.keys() == {FIRM, PERSON, STRUCK_OFF, BARE, CAME_BACK}
    firm = rows[FIRM]
    expected = {
        "participant_id": "0208:0403170701",
        "primary_name": "De Firma",
        "primary_name_language": "2",
        "juridical_form": "610",
        "juridical_form_nl": "Vennootschap",
        "juridical_form_fr": None,
        "juridical_form_cac": "616",
        "juridical_form_cac_nl": None,
        "address_of": FIRM,
        "country_nl": "Land",
        "country_fr": "Pays",
        "zipcode": "1000",
        "municipality_nl": "Brussel",
        "municipality_fr": "Bruxelles",
        "street_nl": "Zetel",
        "street_fr": None,
        "house_number": "1",
        "box": "2",
        "extra_address_info": "Hal",
    }
    assert firm | expected == firm


def test_without_a_seat_the_address_is_that_of_the_oldest_unit(
    reader: duckdb.DuckDBPyConnection,
) -> None:
    places = {n: (row["address_of"], row["street_nl"]) for n, row in invoicing(reader).items()}
    assert places == {
        FIRM: (FIRM, "Zetel"),
        PERSON: (OLDER, "Oudste"),
        STRUCK_OFF: (None, None),
        BARE: (None, None),
        CAME_BACK: (None, None),
    }


def test_activities_of_units_count_by_group(reader: duckdb.DuckDBPyConnection) -> None:
    groups = {
        number: {w for w in ACTIVITY_GROUPS.values() if row[f"has_{w}_activities"]}
        for number, row in invoicing(reader).items()
    }
    assert groups == {
        FIRM: {"vat", "general", "employer"},
        PERSON: {"education"},
        STRUCK_OFF: set(),
        BARE: set(),  # a group that KBO's list does not have
        CAME_BACK: set(),
    }
    row = invoicing(reader)[BARE]
    assert all(row[f"has_{word}_activities"] is False for word in ACTIVITY_GROUPS.values())


def stopped(reader: duckdb.DuckDBPyConnection, number: int) -> dict[str, dict[str, Any]]:
    rows = answers(reader, f"FROM stopped_enterprise({number})")
    assert len(rows) == len({row["enterprise_number"] for row in rows})
    return {row["enterprise_number"]: row for row in rows}


def test_who_is_gone_is_shown_as_at_last_with_when_that_was(
    reader: duckdb.DuckDBPyConnection,
) -> None:
    rows = stopped(reader, 143)
    assert rows.keys() == {LEFT, MOVED_OUT}
    expected = {
        "juridical_situation": "012",
        "primary_name": "Later",
        "primary_name_fr": "Plus tard",
        "last_extract_number": 141,
        "last_snapshot_date": snapshot_date(141),
        "stopped_at_extract": 142,
    }
    assert rows[LEFT] | expected == rows[LEFT]
    left = rows[MOVED_OUT]
    assert (left["primary_name"], left["last_extract_number"]) == (MOVED_OUT, 142)
    newest = "(SELECT extract_number FROM current.source)"
    query = f"FROM stopped_enterprise({newest}) WHERE enterprise_number = '{LEFT}'"
    assert answers(reader, query) == [rows[LEFT]]


def test_who_comes_back_was_gone_only_until_then(reader: duckdb.DuckDBPyConnection) -> None:
    gone = [stopped(reader, number).keys() for number in (140, 141, 142, 143)]
    assert gone == [set(), set(), {LEFT, CAME_BACK}, {LEFT, MOVED_OUT}]


def test_a_look_up_while_it_was_gone_says_when_it_was_there(core: Core) -> None:
    with core.read_register() as register:
        assert register.enterprise(CAME_BACK, at=143).number == CAME_BACK
        with pytest.raises(NotFoundError, match=r"from 140 to 141, and again from 143 on; ask"):
            register.enterprise(CAME_BACK, at=142)


def test_natural_persons_are_left_out_of_both(core: Core, tmp_path: Path) -> None:
    if core.shared is not None:
        pytest.skip("a file is copied")
    file = tmp_path / "kbo.duckdb"
    file.write_bytes(core.database.read_bytes())
    privacy: Privacy = "legal-persons"
    with duckdb.connect(str(file)) as connection:
        for statement in create_views(privacy):
            connection.execute(statement)
        assert invoicing(connection).keys() == {FIRM, STRUCK_OFF, BARE, CAME_BACK}
        assert stopped(connection, 143).keys() == {LEFT}
