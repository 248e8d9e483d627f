"""Builds extracts from rows: real ZIPs, written as KBO writes them."""

import datetime
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES, Column, Table

Value = str | datetime.date | None
Row = tuple[Value, ...]

FIRST_DATE = datetime.date(2025, 1, 1)
LONE_ENTERPRISE: Row = ("0200.065.765", *(None,) * 6)
"""The row of a Full whose enterprises do not matter: without any, it is refused."""


def snapshot_date(number: int) -> datetime.date:
    """The snapshot date that these extracts give to a number."""
    return FIRST_DATE + datetime.timedelta(days=number)


def as_number(column: Column, number: str) -> str:
    """An enterprise number, or what stands for it in a column of other numbers."""
    if not column.number or number[0] in column.number:
        return number
    digits = number.replace(".", "")
    return f"{column.number[0]}.{digits[1:4]}.{digits[4:7]}.{digits[7:]}"


def rows_for(numbers: Sequence[str], mark: str) -> dict[str, list[Row]]:
    """One row for each enterprise number in each of the seven tables."""
    return {table.name: [_row_for(table, number, mark) for number in numbers] for table in TABLES}


def keys_for(numbers: Sequence[str]) -> dict[str, list[str]]:
    """The keys of the rows that `rows_for` gives."""
    return {table.name: [as_number(table.columns[0], n) for n in numbers] for table in TABLES}


def _row_for(table: Table, number: str, mark: str) -> Row:
    marked = f"0{zlib.crc32(mark.encode()) % 1000:03d}.000.000"
    others = (
        None
        if column.type == "DATE"
        else as_number(column, marked)
        if column.number
        else f"{mark} {column.name}"
        for column in table.columns[1:]
    )
    return (as_number(table.columns[0], number), *others)


def csv_field(column: Column, value: Value) -> str:
    """One value as KBO writes it."""
    if isinstance(value, datetime.date):
        return f"{value:%d-%m-}{value.year:04d}"
    if value is None:
        return "" if column.bare_when_empty or column.type == "DATE" else '""'
    return '"' + value.replace('"', '""') + '"'


def csv_text(columns: Sequence[Column], rows: Iterable[Row]) -> str:
    """A whole CSV file, header included."""
    lines = [",".join(f'"{column.csv_name}"' for column in columns)]
    lines += [",".join(map(csv_field, columns, row)) for row in rows]
    return "\n".join(lines) + "\n"


def write_extract(
    directory: Path,
    key: ExtractKey,
    inserts: Mapping[str, Sequence[Row]],
    deletes: Mapping[str, Sequence[str]] | None = None,
    *,
    members: Mapping[str, str | bytes | None] | None = None,
    snapshot: datetime.date | None = None,
) -> Path:
    """Writes one extract.

    Args:
        directory: where to.
        key: number and type.
        inserts: rows by table name; for a Full, all rows, and one enterprise if it says nothing
            of enterprises.
        deletes: keys by table name; Updates only.
        members: contents that replace members by name; None leaves a member out.
        snapshot: the day of the data; None for that of the number.
    """
    date = snapshot or snapshot_date(key.number)
    published = date + datetime.timedelta(days=1)
    texts: dict[str, str | bytes | None] = {
        "meta.csv": '"Variable","Value"\n'
        f'"SnapshotDate","{date:%d-%m-%Y}"\n'
        f'"ExtractTimestamp","{published:%d-%m-%Y} 07:40:18"\n'
        f'"ExtractType","{key.type}"\n"ExtractNumber","{key.number}"\n"Version","1.0.0"\n'
    }
    if key.type == "full":
        inserts = {"enterprise": [LONE_ENTERPRISE], **inserts}
    for table in ALL_TABLES:
        texts |= _table_members(table, key, inserts, deletes or {})
    texts |= members or {}
    file = directory / f"KboOpenData_{key.number:04d}_{published:%Y_%m_%d}_{key.type.title()}.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            if text is not None:
                info = zipfile.ZipInfo(name)  # with a fixed time: the same rows give the same bytes
                info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
                archive.writestr(info, text)
    return file


def _table_members(
    table: Table,
    key: ExtractKey,
    inserts: Mapping[str, Sequence[Row]],
    deletes: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    rows = csv_text(table.columns, inserts.get(table.name, ()))
    if key.type == "full" or table is CODE:
        return {f"{table.name}.csv": rows}
    keys = csv_text(table.columns[:1], [(k,) for k in deletes.get(table.name, ())])
    return {f"{table.name}_delete.csv": keys, f"{table.name}_insert.csv": rows}


def pack_in_folder(zip_file: Path) -> None:
    """Writes a ZIP anew as a Mac does: the files in a folder, and files of its own beside it."""
    with zipfile.ZipFile(zip_file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    folder = zip_file.stem
    with zipfile.ZipFile(zip_file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(folder)
        for name, content in contents.items():
            archive.writestr(f"{folder}/{name}", content)
            archive.writestr(f"__MACOSX/{folder}/._{name}", b"\0\5\x16\7")
        archive.writestr(f"{folder}/.DS_Store", b"\0\0\0\1Bud1")


def announcing(tmp_path: Path, length: int) -> Path:
    """A ZIP whose directory says that it holds so many bytes."""
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("activity.csv", b"")
        archive.filelist[0].file_size = length
    return file
