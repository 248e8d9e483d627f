"""Keys, file names, `meta.csv` and members: what KBO publishes is read, all else is refused."""

import random
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import BatchKey, Extract, ExtractKey, key_in_file_name
from kbo_pipeline.core.tables import ALL_TABLES, BRANCH, CODE, CONTACT, TABLES, Column, Table
from kbo_pipeline.fetch.archive import _hashed_once, damage, read_extract
from kbo_pipeline.stage.faults import RejectedError
from kbo_pipeline.stage.unpack import unpack
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.staged import AWKWARD, staged_rows
from kbo_pipeline_tests.support.zips import LONE_ENTERPRISE, Row, csv_text, write_extract

FULL = ExtractKey(140, "full")
UPDATE = ExtractKey(141, "update")
ROWS: dict[str, list[Row]] = {
    "enterprise": [LONE_ENTERPRISE],
    "branch": [
        ("9.000.006.626", date(1804, 2, 29), "0200.065.765"),
        ("9.000.006.725", None, "0200.065.765"),
    ],
    "code": [("Status", "AC", "NL", "Actief"), ("Status", "AC", "FR", None)],
}
META = {
    "SnapshotDate": "11-10-2025",
    "ExtractTimestamp": "12-10-2025 07:40:18",
    "ExtractType": "full",
    "ExtractNumber": "140",
    "Version": "1.0.0",
}


def meta(**changes: str | None) -> str:
    """A `meta.csv`, with other values or, for None, without them."""
    values = META | changes
    lines = [f'"{name}","{value}"' for name, value in values.items() if value is not None]
    return "\n".join(['"Variable","Value"', *lines]) + "\n"


def unpacked(zip_file: Path) -> tuple[Extract, dict[str, bytes], list[str]]:
    """What a ZIP is, its members by the name they are unpacked to, and the warnings."""
    directory = zip_file.parent / "unpacked"
    directory.mkdir(exist_ok=True)
    for file in directory.iterdir():
        file.unlink()
    extract = read_extract(zip_file)
    found = unpack(zip_file, extract, directory)
    if found.faults:
        raise RejectedError(zip_file.name, found.faults)
    contents = {file.path.name: file.path.read_bytes() for file in found.files.values()}
    return extract, contents, found.warnings


def refusal(zip_file: Path) -> str:
    """The one line, naming the ZIP, with which it is refused."""
    with pytest.raises(ExtractError) as caught:
        unpacked(zip_file)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert zip_file.name in message
    return message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("0001-full", ExtractKey(1, "full")),
        ("0140-update", ExtractKey(140, "update")),
        ("9999-full", ExtractKey(9999, "full")),
        ("10000-update", ExtractKey(10_000, "update")),
        ("999999999-full", ExtractKey(999_999_999, "full")),
    ],
)
def test_a_key_has_one_text_and_the_text_one_key(text: str, key: ExtractKey) -> None:
    assert (ExtractKey.parse(text), str(key)) == (key, text)
    for number in (1, 64, 9999, 12_345):
        batch = BatchKey(key, number)
        assert BatchKey.parse(str(batch)) == batch
        assert str(batch) == f"{text}-{number:04d}"


NO_KEYS = [
    "",
    "140-full",
    "00140-full",
    "0000-full",
    "0140-Full",
    "0140-FULL",
    "0140-fulls",
    "0140-delta",
    "0140_full",
    "0140 -full",
    " 0140-full",
    "0140-full ",
    "0140-full\n",
    "0140-full\r",
    "0140-full\0",
    "0140-full,0141-update",
    "0140,full",
    "0140.0-full",
    "../0140-full",
    "-140-full",
    "+140-full",
    "²140-full",
    "01²0-full",
    "٠١٤٠-full",
    "1234567890-full",
]


@pytest.mark.parametrize("text", [*NO_KEYS, "0140-full-0001"])
def test_what_is_no_extract_key_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ExtractError, match="not an extract") as caught:
        ExtractKey.parse(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        *(f"{key}-0001" for key in NO_KEYS),
        "0140-full",
        "0140-full-",
        "0140-full-1",
        "0140-full-00001",
        "0140-full-0000",
        "0140-full--001",
        "0140-full-000²",
        "0140-full-٠٠٠١",
        "0140-full-0001\n",
        "0140-full-0001-0001",
        "0140-full-1234567890",
    ],
)
def test_what_is_no_batch_key_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ExtractError, match=r"not an? (batch|extract)") as caught:
        BatchKey.parse(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("KboOpenData_0147_2025_10_12_Update.zip", "0147-update"),
        ("KboOpenData_0147_2025_10_12_Full.zip", "0147-full"),
        ("KboOpenData_0137_2025_07_Full.zip", "0137-full"),
        ("kboopendata_0137_2025_07_FULL.ZIP", "0137-full"),
        ("KBOOPENDATA_10000_2050_01_01_update.Zip", "10000-update"),
        ("KboOpenData_0000_2025_10_12_Full.zip", None),
        ("KboOpenData_147_2025_10_12_Full.zip", None),
        ("KboOpenData_0147_2025_Full.zip", None),
        ("KboOpenData_0147_2025_10_12_Full (1).zip", None),
        ("KboOpenData_0147_2025_10_12_Full.zip.part", None),
        ("KboOpenData_٠١٤٧_2025_10_12_Full.zip", None),
        ("x_KboOpenData_0147_2025_10_12_Full.zip", None),
        ("anything.zip", None),
    ],
)
def test_file_names_of_both_styles_tell_the_extract(name: str, key: str | None) -> None:
    found = key_in_file_name(name)
    assert (str(found) if found else None) == key


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_meta_is_read_with_and_without_bom_and_crlf(
    bom: str, line_end: str, tmp_path: Path
) -> None:
    text = bom + meta().replace("\n", line_end)
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"meta.csv": text})
    zip_file = zip_file.rename(tmp_path / "any name.zip")
    assert read_extract(zip_file) == Extract(
        key=FULL,
        snapshot_date=date(2025, 10, 11),
        timestamp=datetime(2025, 10, 12, 7, 40, 18),
        version="1.0.0",
        source_file=zip_file.name,
        sha256=sha256(zip_file.read_bytes()).hexdigest(),
    )


def test_a_large_zip_is_hashed_again_when_it_has_changed_and_only_then(tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS)
    with zipfile.ZipFile(zip_file, "a") as archive:
        archive.writestr("other.bin", bytes(2**25))
    for change in (0, 1):
        content = bytearray(zip_file.read_bytes())
        content[-(2**24)] ^= change  # a byte of that member
        with zip_file.open("r+b") as file:
            file.write(content)
        for _ in range(2):
            before = _hashed_once.cache_info().hits
            assert read_extract(zip_file).sha256 == sha256(content).hexdigest()
        assert _hashed_once.cache_info().hits == before + 1


def test_the_name_of_a_daily_zip_follows_from_its_meta(tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"meta.csv": meta()})
    odd = zip_file.rename(tmp_path / "odd.zip")
    assert read_extract(odd).file_name == "KboOpenData_0140_2025_10_12_Full.zip"


def test_a_zip_without_meta_is_refused(tmp_path: Path) -> None:
    assert "meta.csv" in refusal(write_extract(tmp_path, FULL, ROWS, members={"meta.csv": None}))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        meta() + "\n",
        meta() + '"one field"\n',
        meta() + '"a","b","c"\n',
        meta() + '"not closed\n',
        meta().encode("utf-16"),
        meta(Version="\x00").encode() + b"\xff",
        *(meta(**{name: None}) for name in META),
        *(
            meta(SnapshotDate=text)
            for text in ("", "2025-10-11", "31-02-2025", "11/10/2025", "11-10-2025 x", "1\n2")
        ),
        *(
            meta(ExtractTimestamp=text)
            for text in ("", "12-10-2025", "12-10-2025 24:00:00", "12-10-2025T07:40:18")
        ),
        *(
            meta(ExtractNumber=text)
            for text in (
                "",
                "0",
                "-1",
                "+140",
                "1_40",
                " 140",
                "14O",
                "²",
                "١٤٠",
                "140\n",
                "9" * 99,
            )
        ),
        *(meta(ExtractType=text) for text in ("", "part", "full,update", "full\n")),
    ],
)
def test_an_unsound_meta_is_refused(text: str | bytes, tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"meta.csv": text})
    assert "meta.csv" in refusal(zip_file.rename(tmp_path / "any name.zip"))


@pytest.mark.parametrize(
    ("name", "is_right"),
    [
        ("KboOpenData_0140_2025_10_12_Full.zip", True),
        ("KboOpenData_0140_2025_10_11_Full.zip", True),
        ("KboOpenData_0140_2025_10_13_Full.zip", True),
        ("KboOpenData_0140_2025_10_14_Full.zip", False),
        ("KboOpenData_0140_2025_10_10_Full.ZIP", False),
        ("KboOpenData_0140_2025_02_31_Full.zip", False),
        ("KboOpenData_0140_2024_10_12_Full.zip", False),
        ("KboOpenData_0140_2025_10_Full.zip", True),
        ("KboOpenData_0140_2025_11_Full.zip", False),
    ],
)
def test_another_day_or_month_in_the_file_name_than_in_meta_is_a_warning(
    name: str, is_right: bool, tmp_path: Path
) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"meta.csv": meta()})
    staged = Core(tmp_path).stage(zip_file.rename(tmp_path / name))
    odd = f"{name}: made on 12-10-2025, as meta.csv says; the file name says {name[17:-9]}"
    assert [warning for warning in staged.warnings if "made on" in warning] == (
        [] if is_right else [odd]
    )


@pytest.mark.parametrize(("days", "is_right"), [(2, True), (4, False)])
def test_a_snapshot_of_the_future_is_refused(days: int, is_right: bool, tmp_path: Path) -> None:
    day = date.today() + timedelta(days=days)
    text = meta(SnapshotDate=f"{day:%d-%m-%Y}")
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"meta.csv": text})
    zip_file = zip_file.rename(tmp_path / "any name.zip")
    if is_right:
        assert read_extract(zip_file).snapshot_date == day
    else:
        assert f"SnapshotDate {day:%d-%m-%Y} is in the future" in refusal(zip_file)


def test_an_unknown_version_is_read_with_a_warning(tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"meta.csv": meta(Version="2.0")})
    staged = Core(tmp_path).stage(zip_file.rename(tmp_path / "any name.zip"))
    assert staged.extract.version == "2.0"
    assert "meta.csv: Version '2.0'; 1.0.0 is what is known" in staged.warnings


@pytest.mark.parametrize("number", ["140", "0140", "00000140", "0" * 1000 + "140"], ids=len)
def test_a_number_counts_with_any_zeros_before_it(number: str, tmp_path: Path) -> None:
    text = meta(ExtractNumber=number)
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"meta.csv": text})
    assert read_extract(zip_file.rename(tmp_path / "any name.zip")).key == FULL


@pytest.mark.parametrize("changes", [{"ExtractNumber": "141"}, {"ExtractType": "update"}], ids=str)
def test_a_file_name_that_says_another_extract_is_refused(
    changes: dict[str, str | None], tmp_path: Path
) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"meta.csv": meta(**changes)})
    assert "file name says 0140-full" in refusal(zip_file)


def rewritten(
    zip_file: Path,
    name: Callable[[str], str] = str,
    compression: Callable[[str], int] = lambda member: zipfile.ZIP_DEFLATED,
) -> Path:
    """Writes a ZIP anew, with other member names or another compression."""
    with zipfile.ZipFile(zip_file) as archive:
        contents = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(zip_file, "w") as archive:
        for member, content in contents.items():
            archive.writestr(name(member), content, compression(member))
    return zip_file


def test_the_members_come_out_as_they_went_in(tmp_path: Path) -> None:
    _, contents, warned = unpacked(write_extract(tmp_path, FULL, ROWS))
    assert contents == {
        f"{table.name}_insert.csv": csv_text(table.columns, ROWS.get(table.name, [])).encode()
        for table in ALL_TABLES
    }
    assert set(warned) == {
        f"{table.name}.csv: no rows in a Full" for table in ALL_TABLES if table.name not in ROWS
    }


@pytest.mark.parametrize("key", [FULL, UPDATE], ids=str)
@pytest.mark.parametrize("case", [str.upper, str.title, str.swapcase])
def test_member_names_are_read_in_any_case(
    key: ExtractKey, case: Callable[[str], str], tmp_path: Path
) -> None:
    zip_file = write_extract(tmp_path, key, ROWS, {"contact": ["0200.065.765"]})
    expected = unpacked(zip_file)[1]
    assert unpacked(rewritten(zip_file, case))[1] == expected


@pytest.mark.parametrize("key", [FULL, UPDATE], ids=str)
def test_stored_members_are_read(key: ExtractKey, tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, key, ROWS)
    expected = unpacked(zip_file)[1]
    stored = rewritten(zip_file, compression=lambda member: zipfile.ZIP_STORED)
    assert unpacked(stored)[1] == expected


Pack = Callable[[zipfile.ZipFile, dict[str, bytes]], None]


def by_mac_without_folder(archive: zipfile.ZipFile, contents: dict[str, bytes]) -> None:
    """As Finder compresses the files themselves."""
    archive.mkdir("__MACOSX")
    for name, content in contents.items():
        archive.writestr(name, content)
        archive.writestr(f"__MACOSX/._{name}", b"\0\5\x16\7")


def below(folder: str, *others: str) -> Pack:
    """All files in one folder, whose entry comes last, and others beside it."""

    def pack(archive: zipfile.ZipFile, contents: dict[str, bytes]) -> None:
        for name, content in contents.items():
            archive.writestr(f"{folder}{name}", content)
        for name in others:
            archive.writestr(name, b"" if name.endswith(("/", "\\")) else b"x")

    return pack


@pytest.mark.parametrize("key", [FULL, UPDATE], ids=str)
@pytest.mark.parametrize(
    ("pack", "left_out"),
    [
        (by_mac_without_folder, []),
        (below("KboOpenData_0140/"), []),
        (below("a/b c/é/", "a/", "a/b c/", "a/b c/é/"), []),
        (below("A/", "a/readme.txt"), ["a/readme.txt"]),
        (below("old\\", "old\\"), []),
        (below("./"), []),
        (below(".//x//"), []),
        (below("", "an empty folder/"), []),
        (below("", "docs/", "docs/cookbook.pdf"), ["docs/cookbook.pdf"]),
        (below("x/", "code.txt", "x/code.txt"), ["code.txt", "x/code.txt"]),
    ],
)
def test_files_in_one_folder_are_read_as_if_they_were_in_none(
    key: ExtractKey, pack: Pack, left_out: list[str], tmp_path: Path
) -> None:
    zip_file = write_extract(tmp_path, key, ROWS, {"contact": ["0200.065.765"]})
    _, expected, before = unpacked(zip_file)
    with zipfile.ZipFile(zip_file) as archive:
        contents = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(zip_file, "w", zipfile.ZIP_DEFLATED) as archive:
        pack(archive, contents)
    assert damage(zip_file) is None
    extract, found, warned = unpacked(zip_file)
    assert (extract.key, found) == (key, expected)
    unknown = [w.split(": ")[0] for w in warned if "an unknown member of the ZIP" in w]
    assert unknown == left_out
    assert len(warned) == len(before) + len(left_out)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(method: int, tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS)
    packed = rewritten(
        zip_file, compression=lambda m: method if m == "branch.csv" else zipfile.ZIP_DEFLATED
    )
    assert "branch.csv: unknown compression" in refusal(packed)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_pair_missing_from_an_update_is_an_empty_table_and_reported(
    table: Table, tmp_path: Path
) -> None:
    left_out = {f"{table.name}_delete.csv": None, f"{table.name}_insert.csv": None}
    zip_file = write_extract(tmp_path, UPDATE, ROWS, members=left_out)
    _, contents, warned = unpacked(zip_file)
    assert warned == [f"{table.name}: no files in the ZIP: taken as empty"]
    assert not contents.keys() & left_out.keys()


def test_a_missing_pair_is_staged_as_an_empty_table(tmp_path: Path) -> None:
    left_out = {"contact_delete.csv": None, "contact_insert.csv": None}
    core = Core(tmp_path)
    staged = core.stage(write_extract(tmp_path, UPDATE, ROWS, members=left_out))
    assert staged.warnings == ("contact: no files in the ZIP: taken as empty",)
    assert staged.table_records(CONTACT) == 0
    with core.staged(UPDATE) as (connection, again):
        assert connection.execute("FROM staging.import_staging_contact").fetchall() == []
        assert again.table_records(BRANCH) == len(ROWS["branch"])


@pytest.mark.parametrize(
    ("key", "member"),
    [
        *((FULL, f"{table.name}.csv") for table in ALL_TABLES),
        *((UPDATE, f"{t.name}_{half}.csv") for t in TABLES for half in ("delete", "insert")),
        (UPDATE, "code.csv"),
    ],
    ids=str,
)
def test_a_missing_member_or_half_a_pair_is_refused(
    key: ExtractKey, member: str, tmp_path: Path
) -> None:
    zip_file = write_extract(tmp_path, key, ROWS, members={member: None})
    assert f"{member}: missing" in refusal(zip_file)


@pytest.mark.parametrize("name", ["branch.csv", "Branch.CSV", "meta.csv"])
def test_a_duplicate_member_is_refused(name: str, tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS)
    with zipfile.ZipFile(zip_file, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr(name, "anything")
    assert f"{name.lower()} is in it twice" in refusal(zip_file)


def test_other_members_are_left_out_with_a_warning(tmp_path: Path) -> None:
    others: dict[str, str | bytes | None] = {
        "readme.txt": "x",
        "folder/x": "",
        "branch_insert.csv": "x",
    }
    zip_file = write_extract(tmp_path, FULL, ROWS, members=others)
    _, contents, warned = unpacked(zip_file)
    assert contents == unpacked(write_extract(tmp_path, FULL, ROWS))[1]
    assert {w for w in warned if "unknown member" in w} == {
        f"{name}: an unknown member of the ZIP is left out" for name in others
    }


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda names: names[:-1],
        lambda names: [f"{names[0][:-1]}_", *names[1:]],
        lambda names: [*names[:-1], names[-1].lower()],
        lambda names: [*names[:-1], f"{names[-1]} "],
        lambda names: [*names, names[-1]],
        lambda names: [";".join(names)],
        lambda names: ["\r".join(names)],
        lambda names: ["é" * 10],
        lambda names: [],
    ],
    ids=["fewer", "one-char", "case", "blank", "twice", ";", "CR", "other", "none"],
)
def test_another_header_is_refused_with_file_and_line(
    table: Table, spoil: Callable[[list[str]], list[str]], tmp_path: Path
) -> None:
    header = ",".join(spoil([column.csv_name for column in table.columns]))
    member = f"{table.name}.csv"
    zip_file = write_extract(tmp_path, FULL, ROWS, members={member: header + "\n"})
    names = ",".join(column.csv_name for column in table.columns)
    assert f"{member}: line 1 (byte 0): the header must name {names};" in refusal(zip_file)


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.name)
def test_columns_are_known_by_their_names_in_any_order(table: Table, tmp_path: Path) -> None:
    rows = AWKWARD[table.name]
    columns = [*reversed(table.columns), Column("New, one", "Something that KBO adds.")]
    text = csv_text(columns, [(*reversed(row), '"; x') for row in rows])
    core = Core(tmp_path)
    staged = core.stage(write_extract(tmp_path, FULL, {}, members={f"{table.name}.csv": text}))
    warning = f"{table.name}.csv: unknown columns are left out: 'New, one'; their values are kept"
    assert any(text.startswith(warning) for text in staged.warnings)
    with core.staged(FULL) as (connection, _):
        assert staged_rows(connection, table, "insert") == rows


@pytest.mark.parametrize("text", [b"\xff\xfe\n", b"\x00" * 5000, b'"Id', b"PK\3\4", b"\n"])
def test_a_member_that_is_no_csv_is_refused(text: bytes, tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"branch.csv": text})
    assert "branch.csv: line 1 (byte 0): the header must name Id," in refusal(zip_file)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS, members={"branch.csv": b""})
    assert "branch.csv: an empty file, without even a header" in refusal(zip_file)


def test_a_full_without_any_enterprise_is_refused(tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS | {"enterprise": []})
    assert "enterprise.csv: no rows in a Full" in refusal(zip_file)


def test_a_delete_file_with_more_than_the_key_is_read_for_its_keys(tmp_path: Path) -> None:
    text = csv_text(BRANCH.columns, ROWS["branch"])
    zip_file = write_extract(tmp_path, UPDATE, ROWS, members={"branch_delete.csv": text})
    _, contents, warned = unpacked(zip_file)
    assert contents["branch_delete.csv"] == text.encode()
    assert (
        "branch_delete.csv: unknown columns are left out: 'StartDate', 'EnterpriseNumber'" in warned
    )


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("quote", ['"', ""])
def test_headers_with_bom_crlf_or_without_quotes_give_the_same_rows(
    bom: str, line_end: str, quote: str, tmp_path: Path
) -> None:
    members = {}
    for table in (BRANCH, CODE):
        header, rest = csv_text(table.columns, ROWS[table.name]).split("\n", 1)
        text = header.replace('"', quote) + "\n" + rest
        members[f"{table.name}.csv"] = bom + text.replace("\n", line_end)
    core = Core(tmp_path)
    core.stage(write_extract(tmp_path, FULL, {}, members=members))
    with core.staged(FULL) as (connection, _):
        for table in (BRANCH, CODE):
            rows = connection.execute(f"FROM staging.main.{table.name}").fetchall()
            assert [row[:-4] for row in rows] == ROWS[table.name]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
@pytest.mark.parametrize("member", ["branch.csv", "code.csv", "meta.csv"])
def test_a_damaged_byte_in_a_member_is_refused(
    member: str, compression: int, tmp_path: Path
) -> None:
    zip_file = rewritten(
        write_extract(tmp_path, FULL, ROWS), compression=lambda member: compression
    )
    with zipfile.ZipFile(zip_file) as archive:
        place = archive.getinfo(member)
    content = bytearray(zip_file.read_bytes())
    content[place.header_offset + 30 + len(member) + place.compress_size // 2] ^= 0x10
    zip_file.write_bytes(content)
    assert member in refusal(zip_file)


@pytest.mark.parametrize("offset", [6, 8])  # flags (bit 0: encrypted), compression
@pytest.mark.parametrize("value", [1, 97])
def test_an_encrypted_or_unknown_meta_is_refused(offset: int, value: int, tmp_path: Path) -> None:
    """The fields of the local and of the central header (APPNOTE 4.3.7 and 4.3.12)."""
    zip_file = write_extract(tmp_path, FULL, ROWS)
    with zipfile.ZipFile(zip_file) as archive:
        central = archive.start_dir
    content = bytearray(zip_file.read_bytes())
    content[offset] = content[central + offset + 2] = value
    zip_file.write_bytes(content)
    refusal(zip_file)


@pytest.mark.parametrize(
    "content",
    [b"", b"P", b"PK\3\4", b"<!DOCTYPE html><html></html>", bytes(10_000), b"PK\5\6" + bytes(18)],
    ids=["empty", "P", "PK", "html", "zeros", "no-members"],
)
def test_what_is_no_zip_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "KboOpenData_0140_2025_10_12_Full.zip"
    file.write_bytes(content)
    refusal(file)


@pytest.mark.parametrize(
    ("make", "reason"), [(lambda file: None, "no such file"), (Path.mkdir, "a directory")]
)
def test_what_is_no_file_is_refused(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "KboOpenData_0140_2025_10_12_Full.zip"
    make(file)
    assert reason in refusal(file)


def test_a_truncated_zip_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS)
    content = zip_file.read_bytes()
    for length in range(0, len(content), 29):
        zip_file.write_bytes(content[:length])
        refusal(zip_file)


def test_whatever_byte_is_damaged_the_zip_is_refused_or_gives_the_same(tmp_path: Path) -> None:
    zip_file = write_extract(tmp_path, FULL, ROWS)
    content = zip_file.read_bytes()
    extract, members, _ = unpacked(zip_file)
    chance = random.Random(1)
    same = 0
    for place in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= chance.randint(1, 255)
        zip_file.write_bytes(damaged)
        try:
            found, contents, _ = unpacked(zip_file)
        except ExtractError as error:
            assert len(str(error).splitlines()) == 1
        else:
            same += 1
            assert (replace(found, sha256=extract.sha256), contents) == (extract, members)
    assert 0 < same < len(content) / 5
