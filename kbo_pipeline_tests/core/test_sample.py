"""Made-up extracts look like the real ones, byte for byte where it matters."""

import csv
import datetime
import io
import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES, Table
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.sample.entities import Population
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline.sample.rows import AWKWARD_NAMES
from kbo_pipeline_tests.support.core import sorted_rows
from kbo_pipeline_tests.support.zips import Row, csv_field

SMALL = Sample(enterprises=50, seed=5)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sample(tmp_path_factory.mktemp("small"), SMALL)


def text(zip_file: Path, member: str) -> str:
    with zipfile.ZipFile(zip_file) as archive:
        return archive.read(member).decode("utf-8")


def records(zip_file: Path, member: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text(zip_file, member), newline=""), strict=True))[1:]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        Sample(enterprises=60, seed=seed).write_full(tmp_path / name, 140).read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("size", [49, 2_000_001])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(SettingsError, match=f"50 to 2000000, found {size}"):
        Sample(enterprises=size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "--seed: expected 0 or more, found -1"),
        ({"first_number": 0}, "first_number: expected 1 or more, found 0"),
        ({"change_shares": (0.1, 1.5)}, "share of changes: expected 0 to 1, found 1.5"),
        ({"change_shares": (float("nan"),)}, "share of changes: expected 0 to 1, found nan"),
        ({"default_share": -0.1}, "share of changes: expected 0 to 1, found -0.1"),
    ],
)
def test_a_sample_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        Sample(**arguments)


def test_an_extract_that_cannot_be_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^number of a Full: expected 140 or more, found 139$"):
        SMALL.write_full(tmp_path, 139)
    with pytest.raises(SettingsError, match=r"^number of an Update: expected 141 .* found 140$"):
        SMALL.write_update(tmp_path, 140)
    with pytest.raises(SettingsError, match=r"^--updates: expected 0 or more, found -1$"):
        write_sample(tmp_path, SMALL, updates=-1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_awkward_values_stand_in_the_smallest_sample(seed: int, tmp_path: Path) -> None:
    full = Sample(enterprises=50, seed=seed).write_full(tmp_path, 140)
    names = {row[3] for row in records(full, "denomination.csv")}
    assert set(AWKWARD_NAMES) <= names
    assert len(max(AWKWARD_NAMES, key=len)) == 300
    languages = {row[1] for row in records(full, "denomination.csv")}
    assert languages == {"0", "1", "2", "3", "4"}
    addresses = records(full, "address.csv")
    assert any("\n" in row[7] for row in addresses)
    assert any(row[7].endswith("\\") for row in addresses)
    assert {"0999", "5701 SB", ""} <= {row[4] for row in addresses}
    assert any(row[11] for row in addresses)
    assert any(row[12] for row in addresses)
    contacts = records(full, "contact.csv")
    assert "FAX" in {row[2] for row in contacts}
    assert any(row[3].startswith(" ") for row in contacts)
    assert any(row[3].endswith(" ") for row in contacts)
    assert any(row[3].endswith("\t") for row in contacts)
    dates = {row[6] for row in records(full, "enterprise.csv")}
    snapshot = read_extract(full).snapshot_date
    assert "21-03-1804" in dates
    assert f"{snapshot.replace(day=snapshot.day + 1):%d-%m-%Y}" in dates
    assert len({row[2] for row in records(full, "enterprise.csv")}) > 1
    codes = {row[3] for row in records(full, "activity.csv")}
    assert any(code.startswith("0") for code in codes) and any(len(code) == 7 for code in codes)


@pytest.mark.parametrize("size", [50, 59, 61, 1100, 2018])
def test_the_first_full_has_the_enterprises_asked_for(size: int) -> None:
    assert len(list(Sample(enterprises=size).rows("enterprise", 140))) == size


def test_some_nineteen_of_twenty_situations_are_normal() -> None:
    situations = [row[2] for row in Sample().rows("enterprise", 140)]
    assert 0.93 < situations.count("000") / len(situations) < 0.97
    assert len(set(situations)) == 5


def test_an_entity_that_starts_has_a_recent_start_date() -> None:
    sample = Sample(enterprises=8000, change_shares=(0.5, 0.5))
    for number in (141, 142):
        before = {row[0] for row in sample.rows("enterprise", number - 1)}
        snapshot = datetime.date(2025, 10, 4) + datetime.timedelta(number - 140)
        ages = {
            (snapshot - row[6]).days
            for row in sample.rows("enterprise", number)
            if row[0] not in before and isinstance(row[6], datetime.date)
        }
        assert min(ages) == -1 and 25 < max(ages) <= 30


def test_foreign_entities_are_legal_persons_with_a_seat_abroad_and_a_named_branch() -> None:
    sample = Sample(change_shares=(0.5, 0.5))
    for number in (140, 142):
        branches = {row[0]: row[2] for row in sample.rows("branch", number)}
        assert len(branches) > 4
        names = {row[0]: row[2] for row in sample.rows("denomination", number)}
        assert {names[branch] for branch in branches} == {"004"}
        assert {key for key, kind in names.items() if kind == "004"} == set(branches)
        seats = {row[0]: row for row in sample.rows("address", number) if row[1] == "REGO"}
        abroad = {key for key, seat in seats.items() if seat[2] and seat[3]}
        assert abroad == set(branches.values())
        kinds = {row[0]: row[3] for row in sample.rows("enterprise", number)}
        assert {kinds[key] for key in abroad} == {"2"}
        zipcodes = {seats[key][4] for key in abroad}
        assert {"5701 SB", None} < zipcodes


def test_nobody_can_have_the_telephone_numbers() -> None:
    numbers = [str(row[3]) for row in Sample().rows("contact", 140) if row[2] in ("TEL", "FAX")]
    assert len(numbers) > 500
    for number in numbers:
        assert re.fullmatch(r"0(2|11|16|50|65|81|87)0\d{5,6}", re.sub(r"[ /.]", "", number)), number


def test_seed_and_number_do_not_stand_for_each_other() -> None:
    touched = [
        [index for index, *_ in Population(seed, 2000, 140, (), 0.2).touched_entities(number)]
        for seed, number in ((1, 142), (2, 141), (3, 141))
    ]
    assert touched[0] != touched[1] != touched[2]
    assert all(300 < len(indexes) < 600 for indexes in touched)


@pytest.mark.parametrize("name", ["activity", "contact", "denomination"])
def test_some_rows_stand_in_a_file_twice(small: list[Path], name: str) -> None:
    rows = [tuple(row) for row in records(small[0], f"{name}.csv")]
    assert len(set(rows)) < len(rows)


def test_files_are_sorted_by_key_and_numbers_have_their_check_digits(small: list[Path]) -> None:
    for zip_file in small:
        with zipfile.ZipFile(zip_file) as archive:
            members = [m for m in archive.namelist() if m != "meta.csv"]
        for member in members:
            keys = [row[0] for row in records(zip_file, member)]
            assert keys == sorted(keys), member
            for key in keys if member != "code.csv" else []:
                assert re.fullmatch(r"[01]\d{3}\.\d{3}\.\d{3}|[29](\.\d{3}){3}", key)
                digits = key.replace(".", "")
                if key[0] != "9":
                    assert int(digits[8:]) == 97 - int(digits[:8]) % 97


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.name)
def test_headers_and_quoting_are_those_of_kbo(small: list[Path], table: Table) -> None:
    content = text(small[0], f"{table.name}.csv")
    header = ",".join(f'"{column.csv_name}"' for column in table.columns)
    rows = sorted_rows(SMALL.rows(table.name, 140))
    expected = {",".join(map(csv_field, table.columns, row)) for row in rows}
    assert content.startswith(header + "\n")
    assert all(line in content for line in expected)
    body = content[len(header) + 1 :]
    for line in expected:
        body = body.replace(line + "\n", "")
    assert body == ""


def test_updates_lead_from_each_state_to_the_next_and_to_the_later_full(small: list[Path]) -> None:
    for table in ALL_TABLES:
        state: set[Row] = set()
        for number, zip_file in enumerate(small, start=140):
            extract = read_extract(zip_file)
            assert extract.key.number == number
            if extract.key.type == "full" or table is CODE:
                state = _parsed(table, records(zip_file, f"{table.name}.csv"))
            else:
                gone = {row[0] for row in records(zip_file, f"{table.name}_delete.csv")}
                state = {row for row in state if row[0] not in gone}
                state |= _parsed(table, records(zip_file, f"{table.name}_insert.csv"))
            true_state = list(SMALL.rows(table.name, number))
            assert len(true_state) == len(set(true_state)), table.name
            assert state == _parsed(table, [_as_text(row) for row in true_state]), table.name


def test_the_update_without_changes_is_empty_but_for_its_codes(small: list[Path]) -> None:
    for table in TABLES:
        assert records(small[2], f"{table.name}_delete.csv") == []
        assert records(small[2], f"{table.name}_insert.csv") == []
    assert records(small[2], "code.csv")


def test_unchanged_rows_are_sent_again_and_first_ones_only_inserted(tmp_path: Path) -> None:
    sample = Sample(enterprises=400)
    update = sample.write_update(tmp_path, 143)
    before = set(sample.rows("activity", 142))
    sent = _parsed(TABLES[5], records(update, "activity_insert.csv"))
    assert sent & before
    deleted = {row[0] for row in records(update, "enterprise_delete.csv")}
    inserted = {row[0] for row in records(update, "enterprise_insert.csv")}
    assert inserted - deleted and deleted - inserted


def test_memory_does_not_grow_with_the_size(tmp_path: Path) -> None:
    Sample(enterprises=2000).write_full(tmp_path, 140)  # fills the caches of activities
    peaks = []
    for size in (2000, 5000):
        tracemalloc.start()
        Sample(enterprises=size).write_full(tmp_path, 140)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def _as_text(row: Row) -> list[str]:
    return [
        "" if v is None else v if isinstance(v, str) else f"{v:%d-%m-}{v.year:04d}" for v in row
    ]


def _parsed(table: Table, rows: list[list[str]]) -> set[Row]:
    return {tuple(row) for row in rows}
