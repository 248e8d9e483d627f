"""What an extract changed, by kind: one extract after another on a small register."""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.read.changes import (
    KINDS,
    changed_entities,
    count_changes,
    iterate_changes,
)
from kbo_pipeline.read.types import Change
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, write_extract

DOCUMENTED = (REPOSITORY / "docs" / "changes.md").read_text()
FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")
BAKER, OTHER, SHOP, BRANCH = "0200.065.765", "0200.068.636", "2.000.000.339", "9.000.006.626"
BEGAN = date(2001, 2, 3)

ROWS: dict[str, list[Row]] = {
    "enterprise": [
        (BAKER, "AC", "000", "2", "014", None, BEGAN),
        (OTHER, "AC", "000", "2", "014", None, BEGAN),
    ],
    "establishment": [(SHOP, BEGAN, BAKER)],
    "branch": [(BRANCH, BEGAN, OTHER)],
    "denomination": [
        (BAKER, "1", "001", "Boulangerie"),
        (BAKER, "2", "003", "Brood"),
        (SHOP, "2", "003", "Winkel"),
    ],
    "address": [
        (BAKER, "REGO", None, None, "1005", "A", "A", "Straat", "Rue", "1", *[None] * 3),
        (SHOP, "BAET", None, None, "1005", "A", "A", "Straat", "Rue", "2", *[None] * 3),
    ],
    "contact": [(BAKER, "ENT", "TEL", "02 055 01 99")],
    "activity": [(BAKER, "001", "2025", "10710", "MAIN")],
}


NEW = "0200.171.970"


def own(value: Any, place: int) -> Any:
    """A text, or texts in rows and lists, with numbers that the case at a place has for itself.

    Among these `OTHER` comes before `BAKER`.
    """
    if isinstance(value, dict):
        return {key: own(inner, place) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(own(inner, place) for inner in value)
    if isinstance(value, str):
        for number in (BAKER, OTHER, NEW, SHOP, BRANCH):
            first = 5 if number[1] != "." else 2
            value = value.replace(number, f"{number[:first]}{500 + place}{number[first + 3 :]}")
    return value


def found(reader: duckdb.DuckDBPyConnection, extract: int = 141) -> list[tuple[object, ...]]:
    """Table, kind, entity, before and after of what an extract changed."""
    return [
        (c.table, c.kind, c.entity_number, c.before, c.after)
        for c in iterate_changes(reader, extract)
    ]


def replaced(table: str, number: str, *rows: Row) -> dict[str, list[Row]]:
    """The rows of a table, those of one number being others now."""
    return {table: [*(row for row in ROWS[table] if row[0] != number), *rows]}


CASES: dict[str, tuple[Mapping[str, Sequence[Row]], list[tuple[object, ...]]]] = {
    "the opening of a bankruptcy": (
        replaced("enterprise", BAKER, (BAKER, "AC", "049", "2", "014", None, BEGAN)),
        [("enterprise", "bankruptcy", BAKER, "000", "049")],
    ),
    "another situation, and another form": (
        replaced("enterprise", BAKER, (BAKER, "AC", "012", "2", "610", "616", BEGAN)),
        [
            ("enterprise", "situation", BAKER, "000", "012"),
            ("enterprise", "form", BAKER, "014", "610 616"),
        ],
    ),
    "another situation, and another start date": (
        replaced("enterprise", BAKER, (BAKER, "AC", "012", "2", "014", None, date(2002, 1, 1))),
        [
            ("enterprise", "situation", BAKER, "000", "012"),
            (
                *("enterprise", "changed", BAKER),
                *("AC 2 2001-02-03", "AC 2 2002-01-01"),
            ),
        ],
    ),
    "no situation any more": (
        replaced("enterprise", BAKER, (BAKER, "AC", None, "2", "014", None, BEGAN)),
        [("enterprise", "situation", BAKER, "000", None)],
    ),
    "another start date": (
        replaced("enterprise", BAKER, (BAKER, "AC", "000", "2", "014", None, date(2002, 1, 1))),
        [
            (
                *("enterprise", "changed", BAKER),
                *("AC 2 2001-02-03", "AC 2 2002-01-01"),
            )
        ],
    ),
    "an enterprise that stops, with all that is its own": (
        {table: [row for row in rows if row[0] != BAKER] for table, rows in ROWS.items()},
        [("enterprise", "stopped", BAKER, "AC 000 2 014 2001-02-03", None)],
    ),
    "a new enterprise with its name and address": (
        {
            "enterprise": [*ROWS["enterprise"], (NEW, "AC", "050", "2", *[None] * 3)],
            "denomination": [*ROWS["denomination"], (NEW, "2", "001", "Nieuw")],
            "address": [*ROWS["address"], (NEW, "REGO", *[None] * 11)],
        },
        [("enterprise", "new", NEW, None, "AC 050 2")],
    ),
    "an establishment unit that changes hands": (
        {"establishment": [(SHOP, BEGAN, OTHER)]},
        [("establishment", "transferred", SHOP, BAKER, OTHER)],
    ),
    "a branch that stops, and an establishment unit": (
        {"establishment": [], "branch": []},
        [
            ("establishment", "stopped", SHOP, f"2001-02-03 {BAKER}", None),
            ("branch", "stopped", BRANCH, f"2001-02-03 {OTHER}", None),
        ],
    ),
    "a name in a language that goes first": (
        replaced("denomination", BAKER, *ROWS["denomination"][:2], (BAKER, "2", "001", "Bakker")),
        [("denomination", "renamed", BAKER, "Boulangerie", "Bakker")],
    ),
    "a first name, the last name": (
        {
            "denomination": [(OTHER, "0", "001", "Een"), (SHOP, "2", "003", "Winkel")],
        },
        [
            ("denomination", "renamed", OTHER, None, "Een"),
            ("denomination", "renamed", BAKER, "Boulangerie", None),
        ],
    ),
    "another commercial name": (
        replaced("denomination", BAKER, ROWS["denomination"][0], (BAKER, "2", "003", "Koek")),
        [("denomination", "changed", BAKER, "2 003 Brood", "2 003 Koek")],
    ),
    "another name over the door": (
        replaced("denomination", SHOP, (SHOP, "1", "003", "Magasin")),
        [("denomination", "renamed", SHOP, "Winkel", "Magasin")],
    ),
    "another house": (
        replaced(
            *("address", BAKER),
            (BAKER, "REGO", None, None, "1005", "A", "A", "Straat", "Rue", "3", *[None] * 3),
        ),
        [("address", "moved", BAKER, "1005 A A Straat Rue 1", "1005 A A Straat Rue 3")],
    ),
    "an address that is struck off": (
        replaced("address", BAKER, (*ROWS["address"][0][:12], date(2025, 1, 1))),
        [
            (
                *("address", "changed", BAKER),
                *("REGO 1005 A A Straat Rue 1", "REGO 1005 A A Straat Rue 1 2025-01-01"),
            )
        ],
    ),
    "a first address, and the last one": (
        {
            "address": [
                ROWS["address"][1],
                (OTHER, "REGO", None, None, "2017", *[None] * 8),
            ]
        },
        [
            ("address", "changed", OTHER, None, "REGO 2017"),
            ("address", "changed", BAKER, "REGO 1005 A A Straat Rue 1", None),
        ],
    ),
    "contacts and activities": (
        {"contact": [], "activity": [*ROWS["activity"], (BAKER, "006", "2008", "4724", "SECO")]},
        [
            ("contact", "changed", BAKER, "ENT TEL 02 055 01 99", None),
            ("activity", "changed", BAKER, None, "006 2008 4724 SECO"),
        ],
    ),
    "nothing, when all is sent again": (dict(ROWS), []),
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """A Full with `ROWS` for each case, and an Update that replaces the tables that it changes."""
    directory = tmp_path_factory.mktemp("changes")
    before: dict[str, list[Row]] = defaultdict(list)
    after: dict[str, list[Row]] = defaultdict(list)
    for place, (changed, _) in enumerate(CASES.values()):
        for table, rows in ROWS.items():
            before[table] += own(rows, place)
            after[table] += own(changed.get(table, rows), place)
    core = Core(directory / "core", batch_rows=1000)
    core.import_zip(write_extract(directory, FULL, before))
    deletes = {table: sorted({str(row[0]) for row in rows}) for table, rows in before.items()}
    core.import_zip(write_extract(directory, UPDATE, after, deletes))
    with core.read() as reader:
        yield reader


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_told_as_its_kind_and_once(
    reader: duckdb.DuckDBPyConnection, case: str
) -> None:
    place = [*CASES].index(case)
    numbers = own((BAKER, OTHER, NEW, SHOP, BRANCH), place)
    told = [change for change in found(reader) if change[2] in numbers]
    assert told == own(CASES[case][1], place)


def test_a_change_names_the_entity_and_its_enterprise(reader: duckdb.DuckDBPyConnection) -> None:
    place = [*CASES].index("a branch that stops, and an establishment unit")
    baker, shop = own((BAKER, SHOP), place)
    first = next(c for c in iterate_changes(reader, 141) if c.entity_number == shop)
    assert first == Change(
        *("establishment", "stopped", shop, baker, "Winkel"), f"2001-02-03 {baker}", None
    )
    place = [*CASES].index("contacts and activities")
    named = {c.entity_number: c.name for c in iterate_changes(reader, 141)}
    assert named[own(BAKER, place)] == "Boulangerie"


def test_the_first_full_makes_all_new_and_nothing_else(
    reader: duckdb.DuckDBPyConnection,
) -> None:
    assert {key: n for key, n in count_changes(reader, 140).items() if n} == {
        ("enterprise", "new"): 2 * len(CASES),
        ("establishment", "new"): len(CASES),
        ("branch", "new"): len(CASES),
    }


def test_counts_have_all_kinds_and_agree_with_the_list_and_with_what_changed(
    tmp_path: Path,
) -> None:
    core = Core(tmp_path / "core", batch_rows=10_000)
    for file in write_sample(tmp_path, Sample(enterprises=300), updates=3):
        core.import_zip(file)
    with core.read() as reader:
        for number in (141, 142, 143):
            counts = count_changes(reader, number)
            assert [*counts] == [(kind.table.name, kind.name) for kind in KINDS]
            rows = changed_entities(reader, number).fetchall()
            for kind, count in counts.items():
                assert count == sum(row[:2] == kind for row in rows)
            touched = {row[2] for row in rows}
            for table in TABLES:
                keys = reader.execute(
                    f"SELECT DISTINCT {table.key} FROM {table.name}_changes({number})"
                ).fetchall()
                assert {key for (key,) in keys} <= touched
        assert sum(counts.values()) > 50


def test_the_documented_kinds_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+) \|$", DOCUMENTED, re.MULTILINE)
    assert rows == [(kind.table.name, kind.name, kind.rule) for kind in KINDS]


SHOPS = [f"2.1{n:02d}.000.097" for n in range(12)]


def addresses(places: Sequence[tuple[str, str, str, str]]) -> dict[str, list[Row]]:
    """An address for each shop: zipcode, municipality, street, house number."""
    return {
        "address": [
            (shop, "BAET", None, None, code, town, town, street, street, house, *[None] * 3)
            for shop, (code, town, street, house) in zip(SHOPS, places, strict=True)
        ]
    }


def kinds_of(
    directory: Path,
    before: Sequence[tuple[str, str, str, str]],
    after: Sequence[tuple[str, str, str, str]],
) -> list[str]:
    """The kind of change of each shop's address; `same` where there is none."""
    core = Core(directory / "data")
    others = {"enterprise": ROWS["enterprise"]}
    others["establishment"] = [(shop, BEGAN, BAKER) for shop in SHOPS]
    core.import_zip(write_extract(directory, FULL, {**others, **addresses(before)}))
    update = addresses(after)
    changed = {
        "address": [row for row in update["address"] if row not in addresses(before)["address"]]
    }
    deletes = {"address": [str(row[0]) for row in changed["address"]]}
    core.import_zip(write_extract(directory, UPDATE, changed, deletes))
    with core.read() as reader:
        told = {change.entity_number: change.kind for change in iterate_changes(reader, 141)}
        assert sum(count_changes(reader, 141).values()) == len(told)
    return [told.get(shop, "same") for shop in SHOPS]


def test_who_stays_in_a_street_that_is_renamed_is_readdressed(tmp_path: Path) -> None:
    before = [("1005", "A", "Dorpsstraat", str(n)) for n in range(12)]
    after = [("1005", "A", "Kerkstraat", str(n)) for n in range(12)]
    after[3] = ("1005", "A", "Kerkstraat", "99")  # has moved, within the renamed street
    after[4] = ("1007", "B", "Laan", "4")
    after[5] = before[5]
    expected = ["readdressed"] * 12
    expected[3], expected[4], expected[5] = "moved", "moved", "same"
    assert kinds_of(tmp_path, before, after) == expected


def test_who_stays_in_a_municipality_that_merges_is_readdressed(tmp_path: Path) -> None:
    """Also in a street of its own, and in one that is renamed with the merger."""
    before = [("1005", "A", f"Straat {n}", "7") for n in range(12)]
    after = [("1007", "B", f"Straat {n}", "7") for n in range(12)]
    after[0] = ("1007", "B", "Straat van A", "7")
    after[1] = ("1007", "B", "Straat 1", "8")
    assert kinds_of(tmp_path, before, after) == ["readdressed", "moved", *["readdressed"] * 10]


def test_many_at_one_house_number_that_move_together_have_moved(tmp_path: Path) -> None:
    before = [("1005", "A", "Dorpsstraat", "7")] * 12
    after = [("1005", "A", "Kerkstraat", "7")] * 12
    assert kinds_of(tmp_path, before, after) == ["moved"] * 12


def test_four_house_numbers_are_too_few_to_tell(tmp_path: Path) -> None:
    before = [("1005", "A", "Dorpsstraat", str(n)) for n in range(12)]
    after = [("1005", "A", "Kerkstraat", str(n)) if n < 4 else before[n] for n in range(12)]
    assert kinds_of(tmp_path, before, after) == ["moved"] * 4 + ["same"] * 8


@pytest.mark.long
@pytest.mark.rare
def test_of_three_municipalities_that_merge_only_who_moves_has_moved(tmp_path: Path) -> None:
    """40,000 entities each, one in 2,000 of which moves. One street in 20 gets another name.

    A street has from 1 to 300 house numbers, most have few, and several entities may be at one.
    """
    chance = random.Random(2027)
    before: list[Row] = []
    after: list[Row] = []
    moved: set[str] = set()
    streets = [chance.randint(1, int(chance.choice((3, 30, 300)))) for _ in range(3 * 700)]
    for n in range(3 * 40_000):
        number = f"2.{n // 1000:03d}.{n % 1000:03d}.{n % 97:03d}"
        town, street = n % 3, chance.randrange(700)
        house, zipcode = str(chance.randint(1, streets[town * 700 + street])), f"10{town}0"
        name = f"Straat {street}"
        renamed = f"{name} van {town}" if street % 20 == 0 else name
        place = (zipcode, f"Stad {town}", name, house)
        now = (zipcode, "Stad", renamed, house)
        if chance.random() < 1 / 2000:
            now = (zipcode, "Stad", f"Straat {street + 701}", f"{house} A")
            moved.add(number)
        for rows, (code, city, road, at) in ((before, place), (after, now)):
            rows.append((number, "BAET", None, None, code, city, city, road, road, at, *[None] * 3))
    core = Core(tmp_path / "data", batch_rows=100_000)
    entities: dict[str, list[Row]] = {
        "enterprise": ROWS["enterprise"],
        "establishment": [(str(row[0]), BEGAN, BAKER) for row in before],
    }
    core.import_zip(write_extract(tmp_path, FULL, {**entities, "address": before}))
    deletes = {"address": [str(row[0]) for row in before]}
    core.import_zip(write_extract(tmp_path, UPDATE, {"address": after}, deletes))
    with core.read() as reader:
        kinds = {change.entity_number: change.kind for change in iterate_changes(reader, 141)}
    told = {number for number, kind in kinds.items() if kind == "moved"}
    assert len(kinds) == 120_000 and set(kinds.values()) == {"moved", "readdressed"}
    print(f"{len(told)} of {len(kinds)} moved, {len(told - moved)} of them did not")
    assert moved <= told
    assert len(told) <= len(kinds) / 1000
