"""Finding enterprises by name, place and activity."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.read.register import PublishedRegister
from kbo_pipeline_tests.support.bakery import BAKER, LATE, PERSON, SHOP, STALL, make_bakery
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, write_extract


@pytest.fixture(scope="module")
def register(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublishedRegister]:
    with make_bakery(tmp_path_factory.mktemp("bakery")).read_register() as register:
        yield register


def numbers(register: PublishedRegister, text: str = "", **criteria: str) -> list[str]:
    found = register.find(
        text,
        zipcode=criteria.get("zipcode"),
        nace=criteria.get("nace"),
        nace_version=criteria.get("nace_version"),
        status=criteria.get("status"),
    )
    return [match.enterprise_number for match in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CELESTE", [PERSON, BAKER]),
        ("céleste", [PERSON, BAKER]),
        ("  hemels  bakkerij ", [BAKER]),
        ("Anna Celeste", [PERSON]),
        ("emel", [BAKER]),
        ("gouden", [BAKER]),
        ("anna's", [PERSON]),
        ("koek", []),
        ("crumbs", []),
        ("' OR 1 = 1 --", []),
        ("100%", []),
        ("_", []),
    ],
)
def test_names_are_found_whatever_their_accents_and_case(
    register: PublishedRegister, text: str, expected: list[str]
) -> None:
    assert numbers(register, text) == expected


@pytest.mark.parametrize("name", ["text", "zipcode", "nace", "nace_version", "status"])
def test_what_no_register_can_hold_is_refused(register: PublishedRegister, name: str) -> None:
    with pytest.raises(NotFoundError, match="UTF-8 does not have"):
        numbers(register, **({"text": "x", "nace": "1"} | {name: "a\udcffb"}))
    with pytest.raises(NotFoundError, match="or less"):
        register.find("x", limit=10**30)


def test_a_match_says_what_has_matched(register: PublishedRegister) -> None:
    (match,) = register.find("gouden korst")
    assert (match.enterprise_number, match.name, match.status) == (BAKER, "Bakkerij Hemels", "AC")
    assert (match.zipcode, match.municipality) == ("9007", "Leieland")
    assert (match.matched_number, match.matched_name) == (SHOP, "De Gouden Korst")
    (match,) = register.find("kraam")
    assert (match.name, match.zipcode, match.matched_number) == ("Céleste, Anna", None, STALL)


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ({"zipcode": "9007"}, [BAKER]),
        ({"zipcode": "1005"}, [BAKER]),
        ({"zipcode": "2017"}, [PERSON]),
        ({"zipcode": "0000"}, []),
        ({"nace": "47"}, [BAKER, PERSON]),
        ({"nace": "47.811"}, [PERSON]),
        ({"nace": "10710", "nace_version": "2008"}, [BAKER]),
        ({"nace": "47", "zipcode": "9007", "text": "crumbs"}, []),
        ({"nace": "47", "zipcode": "2017"}, [PERSON]),
        ({"text": "celeste", "nace": "10"}, [BAKER]),
        ({"text": "celeste", "zipcode": "2017", "status": "AC"}, [PERSON]),
        ({"text": "nobody", "status": "AC"}, []),
        ({"text": "celeste", "status": "XX"}, []),
    ],
)
def test_places_activities_and_status_narrow_it_down(
    register: PublishedRegister, criteria: dict[str, str], expected: list[str]
) -> None:
    assert sorted(numbers(register, **criteria)) == expected


def test_something_must_be_looked_for(register: PublishedRegister) -> None:
    for criteria in ({}, {"text": " \t"}, {"status": "AC"}, {"nace_version": "2025"}):
        with pytest.raises(NotFoundError, match="nothing to look for"):
            numbers(register, **criteria)


@pytest.mark.parametrize(
    ("criteria", "why"),
    [
        ({"zipcode": "99999"}, "'99999': no address has this zipcode in the register"),
        ({"zipcode": "x'"}, "no address has this zipcode"),
        ({"nace": "XX"}, r"'XX': no NACE 2025 code begins so"),
        ({"nace": "47", "nace_version": "2008"}, "no NACE 2008 code begins so"),
        ({"nace": "47", "nace_version": "1999"}, "no NACE 1999 code begins so"),
        ({"status": "ZZ"}, "'ZZ': there is no such status"),
        ({"zipcode": "1005", "status": "ac"}, "'ac': there is no such status"),
    ],
)
def test_what_the_register_does_not_know_is_told_from_what_is_not_found(
    register: PublishedRegister, criteria: dict[str, str], why: str
) -> None:
    with pytest.raises(NotFoundError, match=why):
        register.check_known(**criteria)


def test_what_it_knows_passes(register: PublishedRegister) -> None:
    register.check_known()
    known = {"zipcode": "1005", "nace": "47.811", "status": "AC"}  # an activity without a code
    for criteria in (known, {"nace": "107", "nace_version": "2008"}):
        register.check_known(**criteria)
        for name in criteria:
            with pytest.raises(NotFoundError):
                register.check_known(**criteria | {name: "0000"})


@pytest.mark.parametrize("limit", [0, -1])
def test_nothing_at_most_is_refused(register: PublishedRegister, limit: int) -> None:
    with pytest.raises(NotFoundError, match=f"^limit {limit}: ask for 1 or more$"):
        register.find("celeste", limit=limit)


def test_the_best_matches_come_first_and_no_more_than_asked_for(tmp_path: Path) -> None:
    names = {
        "0200.065.765": "Oude Ster",
        "0200.068.636": "Sterrenbeeld",
        "0200.171.970": "STER",
        "0200.245.711": "Rooster",
        "0200.362.210": "Ster & Co",
        "0200.362.408": "Beeld van een ster (oud)",
        "0201.105.843": "Noord-Ster",
    }
    rows: dict[str, list[Row]] = {
        "enterprise": [(number, "AC", *[None] * 5) for number in names],
        "denomination": [(number, "2", "001", name) for number, name in names.items()],
    }
    core = Core(tmp_path / "core", batch_rows=1000)
    core.import_zip(write_extract(tmp_path, ExtractKey(140, "full"), rows))
    with core.read_register() as register:
        found = [match.name for match in register.find("ster")]
        assert found[0] == "STER"
        assert found[1:3] == ["Ster & Co", "Sterrenbeeld"]
        assert {*found[3:6]} == {"Oude Ster", "Noord-Ster", "Beeld van een ster (oud)"}
        assert found[6:] == ["Rooster"]
        assert [match.name for match in register.find("ster", limit=2)] == found[:2]
        assert [m.name for m in register.find("oud beeld")] == ["Beeld van een ster (oud)"]


def test_what_is_found_is_current(register: PublishedRegister) -> None:
    assert numbers(register, "laatkomer") == [LATE]
    assert numbers(register, "boulangerie") == [BAKER]
    assert numbers(register, "bc") == []
