"""What an extract changed, by kind: one extract after another on a small register."""

import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import duckdb
import pytest

from kbo_pipeline.changes import (
    Change,
    changed_entities,
    count_changes,
    iterate_changes,
    published_key,
)
from kbo_pipeline.errors import ExtractError, NotFoundError
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.kinds import KINDS
from kbo_pipeline.sample import Sample, write_sample
from kbo_pipeline.tables import TABLES
from kbo_pipeline_tests.core import Core
from kbo_pipeline_tests.zips import Row, write_extract

DOCUMENTED = (Path(__file__).parents[1] / "docs" / "changes.md").read_text()
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


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after the Full of `ROWS`."""
    directory = tmp_path_factory.mktemp("full")
    core = Core(directory / "core", batch_rows=1000)
    core.import_zip(write_extract(directory, FULL, ROWS))
    return core.directory


def after(
    full: Path, tmp_path: Path, changed: Mapping[str, Sequence[Row]]
) -> duckdb.DuckDBPyConnection:
    """The register after the Full and an Update that replaces these tables whole."""
    core = Core(shutil.copytree(full, tmp_path / "core"), batch_rows=1000)
    deletes = {table: sorted({str(row[0]) for row in ROWS[table]}) for table in changed}
    core.import_zip(write_extract(tmp_path, UPDATE, changed, deletes))
    return core.read()


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
    "no situation any more": (
        replaced("enterprise", BAKER, (BAKER, "AC", None, "2", "014", None, BEGAN)),
        [("enterprise", "situation", BAKER, "000", None)],
    ),
    "another start date": (
        replaced("enterprise", BAKER, (BAKER, "AC", "000", "2", "014", None, date(2002, 1, 1))),
        [
            (
                *("enterprise", "changed", BAKER),
                *("AC 000 2 014 2001-02-03", "AC 000 2 014 2002-01-01"),
            )
        ],
    ),
    "an enterprise that stops, with all that is its own": (
        {table: [row for row in rows if row[0] != BAKER] for table, rows in ROWS.items()},
        [("enterprise", "stopped", BAKER, "AC 000 2 014 2001-02-03", None)],
    ),
    "a new enterprise with its name and address": (
        {
            "enterprise": [*ROWS["enterprise"], ("0200.171.970", "AC", "050", "2", *[None] * 3)],
            "denomination": [*ROWS["denomination"], ("0200.171.970", "2", "001", "Nieuw")],
            "address": [*ROWS["address"], ("0200.171.970", "REGO", *[None] * 11)],
        },
        [("enterprise", "new", "0200.171.970", None, "AC 050 2")],
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
            ("denomination", "renamed", BAKER, "Boulangerie", None),
            ("denomination", "renamed", OTHER, None, "Een"),
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
            ("address", "changed", BAKER, "REGO 1005 A A Straat Rue 1", None),
            ("address", "changed", OTHER, None, "REGO 2017"),
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


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_told_as_its_kind_and_once(full: Path, tmp_path: Path, case: str) -> None:
    changed, expected = CASES[case]
    with after(full, tmp_path, changed) as reader:
        assert found(reader) == expected


def test_a_change_names_the_entity_and_its_enterprise(full: Path, tmp_path: Path) -> None:
    changed = {**replaced("contact", BAKER, (SHOP, "EST", "TEL", "1")), "establishment": []}
    with after(full, tmp_path, changed) as reader:
        first, *others = iterate_changes(reader, "0141-update")
        assert first == Change(
            *("establishment", "stopped", SHOP, BAKER, "Winkel"), f"2001-02-03 {BAKER}", None
        )
        assert [(c.entity_number, c.name) for c in others] == [(BAKER, "Boulangerie")]


def test_the_first_full_makes_all_new_and_nothing_else(full: Path, tmp_path: Path) -> None:
    with after(full, tmp_path, {}) as reader:
        assert {key: n for key, n in count_changes(reader, 140).items() if n} == {
            ("enterprise", "new"): 2,
            ("establishment", "new"): 1,
            ("branch", "new"): 1,
        }
        assert not any(count_changes(reader, 141).values())


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


def test_an_extract_that_is_not_published_is_an_error(full: Path, tmp_path: Path) -> None:
    with after(full, tmp_path, {}) as reader:
        assert published_key(reader, "141") == published_key(reader, "0141-update") == UPDATE
        for unknown in (139, "142", "0141-full", "0142-update"):
            with pytest.raises(NotFoundError, match=f"^{unknown}: not among the published"):
                count_changes(reader, unknown)
        with pytest.raises(ExtractError):
            changed_entities(reader, "9" * 5000)


def test_the_documented_kinds_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+) \|$", DOCUMENTED, re.MULTILINE)
    assert rows == [(kind.table.name, kind.name, kind.rule) for kind in KINDS]
