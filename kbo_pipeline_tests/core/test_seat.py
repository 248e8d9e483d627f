"""Which of several addresses is the seat: the same one wherever one is chosen."""

import datetime
import random
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import ADDRESS
from kbo_pipeline.read.export import write_export
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, write_extract

FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")
_NUMBERS = (f"0200.{n:03d}.{n:03d}" for n in range(1, 999))
SHOP = "2.000.000.339"
COLUMNS = ADDRESS.column_names[2:]


def day(year: int, month: int = 4, number: int = 3) -> datetime.date:
    return datetime.date(year, month, number)


def seat(
    number: str, street: str | None, town: str | None, struck_off: datetime.date | None
) -> Row:
    zipcode = None if town is None else "1000"
    return (
        number,
        "REGO",
        None,
        None,
        zipcode,
        town,
        None,
        street,
        None,
        "1",
        None,
        None,
        struck_off,
    )


# What has these seats, in the order in which they are to be chosen.
SEATS: dict[str, list[tuple[str | None, str | None, datetime.date | None]]] = {
    "a valid one that is the larger row": [("Weg", "Zele", None), ("Aa", "Aalst", day(2016))],
    "a valid one that is the smaller row": [("Aa", "Aalst", None), ("Weg", "Zele", day(2016))],
    "a valid one beside one struck off in the future": [
        ("Weg", "Zele", None),
        ("Aa", "Aalst", day(9999, 12, 31)),
    ],
    "only one, struck off": [("Aa", "Aalst", day(2016))],
    "two struck off": [("Weg", "Zele", day(2016, 4, 4)), ("Aa", "Aalst", day(2016, 4, 3))],
    "three struck off, one before 1970": [
        ("Weg", "Zele", day(1970, 1, 2)),
        ("Dam", "Halle", day(1969, 12, 31)),
        ("Aa", "Aalst", day(1804)),
    ],
    "two struck off on one day": [("Aa", "Aalst", day(2016)), ("Aa", "Zele", day(2016))],
    "two valid ones": [("Aa", "Aalst", None), ("Aa", "Zele", None), ("Aa", "Aalst", day(2020))],
    "two valid ones, one without a town": [("Weg", "Aalst", None), ("Aa", None, None)],
    "one": [("Aa", "Aalst", None)],
    "none": [],
}
NUMBERS = dict(zip(SEATS, _NUMBERS, strict=False))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A Full with them, shuffled; an Update after which each has lost the first."""
    directory = tmp_path_factory.mktemp("seats")
    core = Core(directory / "core", batch_rows=1000)
    at_first = [seat(NUMBERS[what], *one) for what, seats in SEATS.items() for one in seats]
    at_last = [seat(NUMBERS[what], *one) for what, seats in SEATS.items() for one in seats[1:]]
    random.Random(1).shuffle(at_first)
    enterprises: list[Row] = [
        (n, "AC", "000", "2", None, None, day(2000)) for n in NUMBERS.values()
    ]
    names: list[Row] = [(n, "2", "001", f"Firma {what}") for what, n in NUMBERS.items()]
    core.import_zip(
        write_extract(
            directory,
            FULL,
            {"enterprise": enterprises, "denomination": names, "address": at_first},
        )
    )
    deletes = {"address": list(NUMBERS.values())}
    core.import_zip(write_extract(directory, UPDATE, {"address": at_last}, deletes))
    return core


Chosen = tuple[str | None, str | None, datetime.date | None]


def profile(core: Core, source: str) -> dict[str, Chosen]:
    with core.read() as reader:
        rows = reader.execute(
            "SELECT enterprise_number, seat_street_nl, seat_municipality_nl, seat_date_striking_off"
            f" FROM {source}"
        ).fetchall()
    return {row[0]: row[1:] for row in rows}


def shown(core: Core, at: int) -> dict[str, Chosen]:
    found: dict[str, Chosen] = {}
    with core.read_register() as register:
        for number in NUMBERS.values():
            one = register.enterprise(number, at).seat
            found[number] = (one.street, one.municipality, one.struck_off) if one else (None,) * 3
    return found


def exported(core: Core) -> dict[str, Chosen]:
    directory = core.directory / "export"
    settings = load_settings(core.settings | {"KBO_DATABASE": str(core.database)}, core.directory)
    write_export(settings, directory)
    rows = duckdb.execute(
        "SELECT enterprise_number, seat_street_nl, seat_municipality_nl, seat_date_striking_off"
        f" FROM '{directory}/enterprise_profile.parquet'"
    ).fetchall()
    return {row[0]: row[1:] for row in rows}


def expected(first: int) -> dict[str, Chosen]:
    return {
        NUMBERS[what]: seats[first] if len(seats) > first else (None, None, None)
        for what, seats in SEATS.items()
    }


@pytest.mark.parametrize(
    ("chosen", "first"),
    [
        (lambda core: profile(core, "enterprise_profile_at(140)"), 0),
        (lambda core: profile(core, "enterprise_profile_at(141)"), 1),
        (lambda core: profile(core, '"current".enterprise_profile'), 1),
        (lambda core: shown(core, 140), 0),
        (lambda core: shown(core, 141), 1),
        pytest.param(exported, 1, marks=pytest.mark.file_only("an export of a file")),
    ],
    ids=["profile_at 140", "profile_at 141", "profile", "show 140", "show 141", "export"],
)
def test_a_valid_seat_goes_first_then_the_one_struck_off_last(
    core: Core, chosen: Callable[[Core], dict[str, Chosen]], first: int
) -> None:
    assert chosen(core) == expected(first)


def test_a_search_shows_the_same_seat(core: Core) -> None:
    with core.read_register() as register:
        found = register.find("firma", limit=100)
    assert {m.enterprise_number: (m.municipality, m.struck_off) for m in found} == {
        number: (town, struck_off) for number, (_, town, struck_off) in expected(1).items()
    }


def test_all_addresses_are_in_the_order_in_which_one_is_chosen(core: Core) -> None:
    with core.read_register() as register:
        for what, seats in SEATS.items():
            found = register.enterprise(NUMBERS[what], 140).addresses
            assert [(a.street, a.municipality, a.struck_off) for a in found] == seats, what


def test_views_and_lookup_choose_alike_whatever_the_values(tmp_path: Path) -> None:
    """Random seats with few values, so that they often differ in one column or in none."""
    chance = random.Random(3)
    texts = (None, "A", "a", "Ä", "Z", "10", "9")
    numbers = [f"0300.{n:03d}.000" for n in range(150)]
    rows: set[Row] = {
        (
            number,
            "REGO",
            *(chance.choice(texts) for _ in COLUMNS[:-1]),
            chance.choice((None, day(1960), day(2016), day(2016, 5))),
        )
        for number in numbers
        for _ in range(4)
    }
    core = Core(tmp_path / "core", batch_rows=1000)
    enterprises: list[Row] = [(number, *[None] * 6) for number in numbers]
    content = {"enterprise": enterprises, "address": sorted(rows, key=repr)}
    core.import_zip(write_extract(tmp_path, FULL, content))
    with core.read() as reader:
        seats = ", ".join(f"seat_{name}" for name in COLUMNS)
        chosen = reader.execute(
            f'SELECT enterprise_number, {seats} FROM "current".enterprise_profile'
        ).fetchall()
    with core.read_register() as register:
        assert len(chosen) == len(numbers)
        for number, *values in chosen:
            one = dict(zip(COLUMNS, values, strict=True))
            seat_of = register.enterprise(number).seat
            assert seat_of is not None
            assert (seat_of.zipcode, seat_of.house_number, seat_of.box, seat_of.extra) == (
                one["zipcode"],
                one["house_number"],
                one["box"],
                one["extra_address_info"],
            )
            assert seat_of.struck_off == one["date_striking_off"]
            valid = any(row[0] == number and row[-1] is None for row in rows)
            assert (seat_of.struck_off is None) == valid
