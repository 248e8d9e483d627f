"""Rows that cannot be read are set aside: exactly the rest is staged, applied and published."""

import random
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import (
    ACTIVITY,
    ADDRESS,
    ALL_TABLES,
    BRANCH,
    CODE,
    CONTACT,
    DENOMINATION,
    ENTERPRISE,
    ESTABLISHMENT,
    TABLES,
    Table,
)
from kbo_pipeline.publish.verification import verify
from kbo_pipeline.stage.faults import MAX_RECORD, FaultyRecord, RejectedError, faulty_records
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.staged import (
    BAD_DATES,
    UNSOUND,
    good_line,
    spoilt,
)
from kbo_pipeline_tests.support.zips import Row, csv_text, keys_for, rows_for, write_extract

FULL, UPDATE, LATER_FULL = (
    ExtractKey(140, "full"),
    ExtractKey(141, "update"),
    ExtractKey(142, "full"),
)
NUMBERS = [f"0200.{number:03d}.000" for number in range(40)]
REJECTED = "SELECT extract, file, line, raw, column_name, reason FROM rejected_row ORDER BY ALL"


@pytest.fixture
def core(tmp_path: Path) -> Core:
    return Core(tmp_path / "core", max_faulty_rows=100)


def rejected(core: Core) -> list[tuple[Any, ...]]:
    with core.read() as connection:
        return connection.execute(REJECTED).fetchall()


def current(core: Core) -> dict[str, list[tuple[Any, ...]]]:
    with core.read() as connection:
        return {
            table.name: connection.execute(f'FROM "current".{table.name} ORDER BY ALL').fetchall()
            for table in ALL_TABLES
        }


def found(file: Path, text: bytes, table: Table) -> list[FaultyRecord]:
    file.write_bytes(text)
    return list(faulty_records(file, file.name, table.columns, table.columns[0]))


@pytest.mark.parametrize("unsound", UNSOUND)
def test_a_record_that_cannot_be_read_is_kept_as_it_stood_beside_its_neighbours(
    unsound: str, core: Core, tmp_path: Path
) -> None:
    spoil, reason = UNSOUND[unsound]
    text = spoilt(ADDRESS, spoil)
    core.stage(write_extract(tmp_path, FULL, {}, members={"address.csv": text}))
    with core.staged(FULL) as (connection, staged):
        ((extract, file, line, raw, column, why),) = connection.execute(
            "FROM staging.rejected_row"
        ).fetchall()
        assert connection.execute("SELECT count(*) FROM staging.address").fetchall() == [(2,)]
    assert (extract, file, line, staged.rejected_rows) == (str(FULL), "address.csv", 3, 1)
    assert reason in why
    assert column == ("EntityNumber" if "number" in reason else None)
    bad = text.split(b"\n")[2]
    assert raw == bad.decode("utf-8", "backslashreplace").replace("\0", r"\x00")


def test_dates_that_are_none_set_their_rows_aside(tmp_path: Path) -> None:
    core = Core(tmp_path / "core", max_faulty_rows=None)
    good = good_line(BRANCH)
    bad = [good.replace("01-02-2020", text) for text in BAD_DATES]
    content = "\n".join([csv_text(BRANCH.columns, []) + good, *bad, good, ""])
    core.import_zip(write_extract(tmp_path, FULL, {}, members={"branch.csv": content}))
    assert [row[1:] for row in rejected(core)] == [
        ("branch.csv", line, raw, "StartDate", "no date dd-mm-yyyy")
        for line, raw in enumerate(bad, start=3)
    ]
    assert len(current(core)["branch"]) == 1  # the two sound ones say the same


@pytest.mark.parametrize(
    "text", ["29-02-2000", "29-02-2024", "29-02-0400", "31-12-9999", "30-04-2020", "28-02-1900"]
)
def test_a_date_of_the_calendar_sets_nothing_aside(text: str, tmp_path: Path) -> None:
    content = spoilt(BRANCH, lambda line: line.replace("01-02-2020", text))
    assert found(tmp_path / "branch.csv", content, BRANCH) == []


@pytest.mark.parametrize(
    "text", ["29-02-1900", "29-02-2100", "29-02-2023", "29-02-0000", "30-02-2024", "31-04-2020"]
)
def test_a_date_that_is_in_no_calendar_is_seen(text: str, tmp_path: Path) -> None:
    content = spoilt(BRANCH, lambda line: line.replace("01-02-2020", text))
    (record,) = found(tmp_path / "branch.csv", content, BRANCH)
    assert (record.line, record.faults[0].reason) == (3, "no date dd-mm-yyyy")


@pytest.mark.parametrize("kind", ["first Full", "Full on a filled register", "Update"])
@pytest.mark.parametrize("seed", range(2))
def test_a_spoilt_extract_leads_to_what_it_would_without_the_spoilt_rows(
    seed: int, kind: str, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    key = {"first Full": FULL, "Update": UPDATE}.get(kind, LATER_FULL)
    first = write_extract(tmp_path, FULL, rows_for(NUMBERS[:30], "a"))
    changed = NUMBERS[20:] if key == UPDATE else NUMBERS[5:]
    rows = rows_for(changed, "b")
    deletes = keys_for(changed) if key == UPDATE else None
    spoilt_members: dict[str, str | bytes | None] = {}
    left: dict[str, list[Row]] = {}
    places = 0
    for table in TABLES:
        lines = csv_text(table.columns, rows[table.name]).encode().splitlines(keepends=True)
        bad = {n for n in range(1, len(lines)) if chance.random() < 0.04}
        places += len(bad)
        left[table.name] = [r for n, r in enumerate(rows[table.name], start=1) if n not in bad]
        for n in bad:
            lines[n] = chance.choice(
                [
                    b'"x' + lines[n],
                    lines[n].rstrip(b"\n") + b',"more"\n',
                    b'"\xff"' + lines[n][lines[n].index(b",") :],
                    lines[n].replace(b".", b"", 1),
                    b"\n",
                ]
            )
        name = f"{table.name}_insert.csv" if key == UPDATE else f"{table.name}.csv"
        spoilt_members[name] = b"".join(lines)
    (tmp_path / "sound").mkdir()
    faulty_zip = write_extract(tmp_path, key, rows, deletes, members=spoilt_members)
    sound_zip = write_extract(tmp_path / "sound", key, left, deletes)
    results = []
    for name, zip_file in (("faulty", faulty_zip), ("sound", sound_zip)):
        core = Core(tmp_path / name, max_faulty_rows=None)
        if key != FULL:
            core.import_zip(first)
        core.import_zip(zip_file, random.Random(seed), twice=True)
        with core.read() as connection:
            history = [connection.execute(f"FROM {t.name} ORDER BY ALL").fetchall() for t in TABLES]
        results.append(history)
        lines_aside = sum(row[3].count("\n") + 1 for row in rejected(core))
        assert lines_aside == (places if name == "faulty" else 0)
        assert not [r for r in core.checks if r.check.name == "ledger_equals_rows" and r.blocks]
    assert results[0] == results[1]
    assert places > 0


def test_what_the_zip_holds_is_accounted_for_before_readers_see_it(
    core: Core, tmp_path: Path
) -> None:
    """The check stops a publication when a record is neither applied nor set aside."""
    from kbo_pipeline.core.errors import CheckFailedError
    from kbo_pipeline.stage.staged import staging_file

    core.stage(write_extract(tmp_path, FULL, rows_for(NUMBERS, "a")))
    with duckdb.connect(str(staging_file(core.staging_dir, FULL))) as connection:
        connection.execute(
            "UPDATE member SET records_count = records_count + 1 WHERE table_name = 'contact'"
        )
    with core.applying(FULL) as (register, staged):
        for batch in staged.batches:
            register.apply(staged, batch)
    with pytest.raises(CheckFailedError, match=r"contact: records in the ZIP \(insert\)"):
        core.publish(FULL)


def branches(sound: int, faulty: int) -> str:
    lines = [f'"9.000.{n // 1000:03d}.{n % 1000:03d}",,"{NUMBERS[0]}"\n' for n in range(sound)]
    return csv_text(BRANCH.columns, []) + "".join(lines) + "x\n" * faulty


@pytest.mark.parametrize(
    ("sound", "faulty", "most", "is_taken"),
    [
        (5, 10, 100, True),
        (5, 11, 100, False),
        (20_000, 20, 100, True),
        (20_000, 21, 100, False),
        (20_000, 20, 19, False),
        (5, 1, 0, False),
        (5, 11, None, True),
        (0, 500, None, True),
    ],
)
def test_few_faulty_rows_do_not_stop_an_extract_and_many_do(
    sound: int, faulty: int, most: int | None, is_taken: bool, tmp_path: Path
) -> None:
    core = Core(tmp_path / "core", max_faulty_rows=most)
    zip_file = write_extract(tmp_path, FULL, {}, members={"branch.csv": branches(sound, faulty)})
    if is_taken:
        assert core.stage(zip_file).rejected_rows == faulty
        return
    with pytest.raises(RejectedError, match="kbo retry 0140-full --accept-faults") as caught:
        core.stage(zip_file)
    assert len(caught.value.faults) == min(20, faulty)
    assert [path.suffix for path in core.staging_dir.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("branch.csv", b"x\n"),
        ("branch.csv", b""),
        ("branch.csv", None),
        ("enterprise.csv", csv_text(ENTERPRISE.columns, []) + "x\n"),
        ("enterprise.csv", csv_text(ENTERPRISE.columns, [])),
    ],
    ids=["header", "empty", "missing", "all rows faulty", "no rows"],
)
def test_nobody_can_accept_a_file_that_is_not_in_its_form(
    member: str, content: str | bytes | None, tmp_path: Path
) -> None:
    core = Core(tmp_path / "core", max_faulty_rows=None)
    with pytest.raises(RejectedError) as caught:
        core.stage(write_extract(tmp_path, FULL, {}, members={member: content}))
    assert caught.value.accept == ""


def test_a_faulty_key_that_is_to_be_deleted_is_set_aside(core: Core, tmp_path: Path) -> None:
    core.import_zip(write_extract(tmp_path, FULL, rows_for(NUMBERS, "a")))
    keys = csv_text(CONTACT.columns[:1], [(NUMBERS[0],), ("all",), (NUMBERS[1],)])
    members = {"contact_delete.csv": keys}
    core.import_zip(write_extract(tmp_path, UPDATE, {}, {"contact": []}, members=members))
    assert [row[1:] for row in rejected(core)] == [
        ("contact_delete.csv", 3, '"all"', "EntityNumber", "no number of that kind")
    ]
    assert len(current(core)["contact"]) == len(NUMBERS) - 2


def test_what_was_set_aside_goes_with_a_rollback_and_comes_again(
    core: Core, tmp_path: Path
) -> None:
    core.import_zip(write_extract(tmp_path, FULL, rows_for(NUMBERS, "a")))
    header = csv_text(CONTACT.columns, [])
    zip_file = write_extract(tmp_path, UPDATE, {}, members={"contact_insert.csv": f"{header}x\n"})
    core.import_zip(zip_file)
    before = rejected(core)
    assert [row[0] for row in before] == [str(UPDATE)]
    core.rollback(UPDATE)
    assert rejected(core) == []
    core.import_zip(zip_file)
    assert rejected(core) == before


@pytest.mark.file_only("verify reads a published file here")
def test_a_full_is_compared_without_the_rows_that_an_import_sets_aside(
    core: Core, tmp_path: Path
) -> None:
    rows = rows_for(NUMBERS, "a")
    text = csv_text(CONTACT.columns, rows["contact"]) + "x\n"
    full = write_extract(tmp_path, FULL, rows, members={"contact.csv": text})
    core.import_zip(full)
    result = verify(load_settings({"KBO_DATA_DIR": str(core.directory)}, tmp_path), full)
    assert result.is_equal
    assert (result.rejected_rows, result.to_json()["rejected_rows"]) == (1, 1)
    assert str(result).endswith("; 1 rows of the ZIP are set aside")


@pytest.mark.parametrize("digit", "2345678")
def test_establishment_units_begin_with_2_to_8(digit: str, core: Core, tmp_path: Path) -> None:
    unit, shop = f"{digit}.000.000.339", "Winkel"
    rows: dict[str, list[Row]] = {
        "enterprise": [(NUMBERS[0], "AC", "000", "2", "014", None, None)],
        "establishment": [(unit, None, NUMBERS[0])],
        "denomination": [(unit, "2", "003", shop)],
    }
    staged = core.stage(write_extract(tmp_path, FULL, rows))
    assert staged.rejected_rows == 0
    assert not [warning for warning in staged.warnings if "unusual" in warning]
    core.import_zip(write_extract(tmp_path, FULL, rows))
    register = core.read_register()
    assert register.enterprise(unit.replace(".", "")).number == NUMBERS[0]
    (match,) = register.find(shop)
    assert match.enterprise_number == NUMBERS[0]


@pytest.mark.parametrize("digit", "019")
def test_an_establishment_unit_of_another_kind_is_set_aside(digit: str, tmp_path: Path) -> None:
    text = csv_text(ESTABLISHMENT.columns, [(f"{digit}.000.000.339", None, NUMBERS[0])])
    (record,) = found(tmp_path / "establishment.csv", text.encode(), ESTABLISHMENT)
    assert record.faults[0].column == "EstablishmentNumber"


@pytest.mark.parametrize("number", ["0400.000.779", "2.000.000.123", "9.000.006.626", "5555.1.1"])
@pytest.mark.parametrize("place", ["id", "enterprise"])
def test_a_branch_takes_numbers_of_either_shape(
    place: str, number: str, core: Core, tmp_path: Path
) -> None:
    """Cookbook R018, 2.9: both its number and that of its enterprise."""
    row = (number, None, NUMBERS[0]) if place == "id" else ("9.000.006.626", None, number)
    staged = core.stage(write_extract(tmp_path, FULL, {"branch": [row]}))
    is_number = number != "5555.1.1"
    assert staged.rejected_rows == (0 if is_number else 1)
    is_usual = is_number and (number[0] == "9") == (place == "id") and number[0] != "2"
    column = "Id" if place == "id" else "EnterpriseNumber"
    unusual = f"branch: {column}: 1 numbers of an unusual kind"
    assert (unusual in staged.warnings) == (is_number and not is_usual)


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.name)
def test_the_exact_reading_finds_nothing_in_sound_files(table: Table, tmp_path: Path) -> None:
    line = good_line(table).encode()
    header = csv_text(table.columns, []).encode()
    for text in (header + line, header + line + b"\n", header, header + (line + b"\n") * 100_000):
        assert found(tmp_path / "x.csv", text, table) == []
        assert found(tmp_path / "x.csv", text.replace(b"\n", b"\r\n"), table) == []


def test_places_are_right_far_into_a_large_file(tmp_path: Path) -> None:
    line = b'"0200.065.765","001","2025","01110","MAIN"\n'
    header = csv_text(ACTIVITY.columns, []).encode()
    bad = [b"x\n", line.replace(b"2025", b'20"25'), b'"0200","\xff","","",""\n', b"\n"]
    text = header + b"".join(line * 300_000 + wrong for wrong in bad)
    records = found(tmp_path / "activity.csv", text, ACTIVITY)
    assert [text[record.start : record.end] for record in records] == bad
    assert [record.line for record in records] == [300_001 * n + 1 for n in range(1, 5)]


def test_a_text_that_is_too_long_is_one_record_with_all_its_lines(
    core: Core, tmp_path: Path
) -> None:
    line = f'"{NUMBERS[0]}","ENT","TEL","%s"\n'
    long = random.Random(1).randbytes(MAX_RECORD).hex("\n", 40)
    text = csv_text(CONTACT.columns, []) + line % "1" + line % long + line % "2"
    zip_file = write_extract(tmp_path, FULL, {}, members={"contact.csv": text})
    assert core.stage(zip_file).rejected_rows == 1
    with core.staged(FULL) as (connection, _):
        assert connection.execute("SELECT value FROM staging.contact").fetchall() == [
            ("1",),
            ("2",),
        ]


def test_a_record_that_is_too_long_is_one_record(tmp_path: Path) -> None:
    line = b'"VAT","001","NL","%s"\n'
    header = csv_text(CODE.columns, []).encode()
    longest = MAX_RECORD - len(line) + 3
    text = header + line % (b"x" * longest) + line % b"y" + line % (b"z" * (longest + 1)) + line
    (record,) = found(tmp_path / "code.csv", text, CODE)
    assert record.faults[0].reason == "a record of more than 2,097,152 bytes"
    assert (record.line, len(record.raw)) == (4, MAX_RECORD)
    assert text[record.end :] == line


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_record_is_too_long_for_duckdb_where_it_is_too_long_for_the_exact_reading(
    line_end: str, core: Core, tmp_path: Path
) -> None:
    line = '"VAT","001","NL","{}"'
    text = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=MAX_RECORD + 9))
    longest = MAX_RECORD - len(line.format(""))
    lines = [csv_text(CODE.columns, []).strip(), line.format(text[:longest]), ""]
    core.stage(write_extract(tmp_path, FULL, {}, members={"code.csv": line_end.join(lines)}))
    with core.staged(FULL) as (connection, staged):
        assert connection.execute("SELECT count(*) FROM staging.code").fetchall() == [(1,)]
    assert staged.rejected_rows == 0
    lines[1] = line.format(text[: longest + 3])
    core.stage(write_extract(tmp_path, FULL, {}, members={"code.csv": line_end.join(lines)}))
    with core.staged(FULL) as (_, staged):
        assert staged.rejected_rows == 1


def test_a_quote_that_nothing_closes_takes_no_sound_record_with_it(tmp_path: Path) -> None:
    good = b'"VAT","001","NL","y"\n'
    header = csv_text(CODE.columns, []).encode()
    for lines in (1, 999, 1001, 20_000):
        junk = good.replace(b'"y"', b'"y') + b"z\n" * lines
        records = found(tmp_path / "code.csv", header + good + junk + good, CODE)
        assert (records[0].line, records[0].start) == (3, len(header + good))
        assert b"".join(record.raw + b"\n" for record in records) == junk
        assert len(records) == 1 or lines > 1000


def test_a_text_with_line_breaks_is_set_aside_with_all_its_lines(tmp_path: Path) -> None:
    good = b'"0200.065.765","ENT","WEB","a\nb ""c""\n"\n'
    bad = b'"0200.065.765","ENT","WEB","a\nb "c"\nd"\n'
    header = csv_text(CONTACT.columns, []).encode()
    text = header + good + bad + good
    (record,) = found(tmp_path / "contact.csv", text, CONTACT)
    assert text[record.start : record.end] == bad
    assert (record.line, record.faults[0].line) == (5, 6)


@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize(
    "bad",
    [
        b'"0200.001.000""\n","2","001\na"\n',
        b'"0200.001.000","2","001","a\na,b,c,d\n","more"\n',
        b'"a\n\n\n"\n',
    ],
)
def test_a_record_of_several_lines_with_another_number_of_fields_is_one_wherever_it_stands(
    bad: bytes, place: int, core: Core, tmp_path: Path
) -> None:
    good = csv_text(DENOMINATION.columns, rows_for(NUMBERS[:2], "a\nb")["denomination"])
    records = good.encode().replace(b'\n"0200', b'\n\0"0200').split(b"\0")
    text = b"".join([*records[:place], bad, *records[place:]])
    core.stage(write_extract(tmp_path, FULL, {}, members={"denomination.csv": text}))
    with core.staged(FULL) as (connection, _):
        kept = connection.execute("SELECT raw FROM staging.rejected_row").fetchall()
        assert connection.execute("SELECT count(*) FROM staging.denomination").fetchall() == [(2,)]
    assert kept == [(bad.decode().removesuffix("\n"),)]


def test_very_many_rows_are_set_aside_in_seconds(tmp_path: Path) -> None:
    core = Core(tmp_path / "core", max_faulty_rows=None, threads=4)
    lines = [f'"0200.000.{number:03d}","ENT","TEL"' for number in range(1000)] * 12
    lines[7::9] = ["x" for _ in lines[7::9]]
    text = csv_text(CONTACT.columns, []) + "\n".join([*lines, ""])
    began = time.monotonic()
    core.stage(write_extract(tmp_path, FULL, {}, members={"contact.csv": text}))
    with core.staged(FULL) as (connection, staged):
        kept = connection.execute("SELECT line, raw FROM staging.rejected_row ORDER BY 1")
        assert kept.fetchall() == list(enumerate(lines, start=2))
    assert staged.rejected_rows == len(lines)
    assert time.monotonic() - began < 20  # one by one, it took 50 s
