"""ZIPs that are none, or do more than a ZIP should."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from kbo_pipeline_tests.tools.bad_input.cases import NAME, Case, archive_case, update, zip_case

_LOCAL, _CENTRAL, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def zip_cases() -> list[Case]:
    """The cases of this module."""
    return [*_whole_files(), *_directories(), *_members(), *_contents()]


def _whole_files() -> list[Case]:
    contents: dict[str, Callable[[bytes], bytes]] = {
        "an empty file": lambda good: b"",
        "one byte": lambda good: b"P",
        "a login page": lambda good: b"<!DOCTYPE html><html><body>Login</body></html>",
        "zeros": lambda good: bytes(10_000),
        "only the first half": lambda good: good[: len(good) // 2],
        "the last byte is missing": lambda good: good[:-1],
        "the first byte is missing": lambda good: good[1:],
        "a byte after the end": lambda good: good + b"x",
        "4 KiB of zeros after the end": lambda good: good + bytes(4096),
        "a byte before the start": lambda good: b"x" + good,
        "a script before the start": lambda good: b"#!/bin/sh\nexit\n" + good,
        "two ZIPs in one file": lambda good: good + good,
        "a ZIP without members": lambda good: _END + bytes(18),
        "a comment that is shorter than it says": lambda good: good[:-2] + b"\5\0abc",
        "a comment that holds the end of a ZIP": lambda good: _commented(good, _END + bytes(18)),
        "a comment that begins like the end of a ZIP": lambda good: _commented(good, _END + b"."),
        "one of several parts": lambda good: _patched(good, _END, 4, b"\1\0"),
        "a directory that begins elsewhere": lambda good: _shifted_directory(good),
        "a directory of 4 GB": lambda good: _patched(good, _END, 12, b"\xff\xff\xff\xff"),
        "65,535 members, as it says": lambda good: _patched(good, _END, 10, b"\xff\xff"),
        "a ZIP64 end that leads nowhere": lambda good: _with_zip64(good, 1 << 60, 44),
        "a ZIP64 end with more in it": lambda good: _with_zip64(good, None, 60),
        "bytes between the members and the directory": lambda good: _with_gap(good),
    }
    cases = [zip_case(name, spoil) for name, spoil in contents.items()]
    return [
        *cases,
        Case("no file", lambda directory: ("import", directory / NAME)),
        Case("a directory", _make_directory),
        Case("a name with a line break, of no file", lambda d: ("import", d / "a\nb.zip")),
    ]


def _commented(good: bytes, comment: bytes) -> bytes:
    return good[:-2] + struct.pack("<H", len(comment)) + comment


def _make_directory(directory: Path) -> Sequence[str | Path]:
    (directory / NAME).mkdir()
    return ("import", directory / NAME)


def _directories() -> list[Case]:
    """The central directory and the local headers say different things, or too much."""
    return [
        zip_case("two members at one place", _overlapping),
        zip_case("a member that lies before the file", lambda g: _entry(g, 42, b"\xff" * 4)),
        zip_case("local header: another name", lambda g: _patched(g, _LOCAL, 30, b"x")),
        zip_case("local header: another compression", lambda g: _patched(g, _LOCAL, 8, b"\0\0")),
        zip_case("local header: another CRC", lambda g: _patched(g, _LOCAL, 14, b"abcd")),
        zip_case("local header: another length", lambda g: _patched(g, _LOCAL, 22, b"\1\0\0\0")),
        zip_case("local header: none", lambda g: _patched(g, _LOCAL, 0, b"PK\0\0")),
        zip_case("encrypted", lambda g: _both(g, 6, b"\1\0")),
        zip_case("encrypted, as the directory alone says", lambda g: _entry(g, 8, b"\1\0")),
        zip_case("strongly encrypted", lambda g: _both(g, 6, b"\x41\0")),
        zip_case("a masked directory", lambda g: _both(g, 6, b"\0\x20")),
        zip_case("patched data", lambda g: _both(g, 6, b"\x20\0")),
        zip_case("an unknown compression", lambda g: _both(g, 8, struct.pack("<H", 97))),
        zip_case("a directory entry that is cut short", lambda g: _entry(g, 28, b"\xff\xff")),
        zip_case("streamed, without the record of its length", lambda g: _both(g, 6, b"\x08\0")),
    ]


def _members() -> list[Case]:
    def linked(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("readme.txt")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")

    def linked_folder(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("folder/")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "")

    def many(archive: zipfile.ZipFile) -> None:
        for number in range(65 - len(archive.infolist())):
            archive.writestr(f"{number}.txt", "")

    def nul(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("readme.txt")
        info.filename = "a\0b.txt"
        archive.writestr(info, "x")

    def named(name: str) -> Callable[[zipfile.ZipFile], None]:
        def write(archive: zipfile.ZipFile) -> None:
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, "x")

        return write

    return [
        archive_case("the same member twice", named("contact_insert.csv")),
        archive_case("the same member twice, in other case", named("Contact_INSERT.csv")),
        archive_case("meta.csv twice", named("meta.csv")),
        archive_case("a symbolic link", linked),
        archive_case("CSV files in a folder and in none", named("folder/enterprise_insert.csv")),
        Case("CSV files in two folders", _two_folders),
        archive_case("a folder that has content", named("folder/")),
        archive_case("a folder that is a symbolic link", linked_folder),
        archive_case("a folder with the name of a file", lambda a: a.mkdir("Contact_INSERT.csv")),
        archive_case("the same member twice, with a back-slash", named(".\\meta.csv")),
        archive_case("an absolute name", named("/etc/passwd")),
        archive_case("a name that leads up", named("../../etc/passwd")),
        archive_case("a name that leads up in its middle", named("a/../../b")),
        archive_case("a name that leads up with a back-slash", named("..\\windows.csv")),
        archive_case("a name of another computer", named("\\\\server\\share\\x.csv")),
        archive_case("a name with a drive", named("C:x.csv")),
        archive_case("a name with a NUL", nul),
        archive_case("a name with a line break", named("a\nb.csv")),
        archive_case("a name with a terminal's escape", named("a\x1b[2Jb.csv")),
        archive_case("a name that is shown from right to left", named("a\u202evsc.exe")),
        archive_case("an empty name", named("")),
        archive_case("65 members", many),
        archive_case(
            "a member in bzip2",
            lambda archive: archive.writestr("readme.txt", "x", zipfile.ZIP_BZIP2),
        ),
        archive_case(
            "a member in LZMA",
            lambda archive: archive.writestr("readme.txt", "x", zipfile.ZIP_LZMA),
        ),
        archive_case(
            "a bomb: 20 MB of zeros",
            lambda archive: archive.writestr("readme.txt", bytes(20_000_000)),
        ),
        archive_case(
            "a bomb with the name of a table",
            lambda archive: archive.writestr("address.csv", bytes(20_000_000)),
        ),
        Case("8.9 GB in all, as it says", _too_much),
    ]


def _two_folders(directory: Path) -> Sequence[str | Path]:
    file = update(directory)
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in ("0141", "0142"):
            for name, content in contents.items():
                archive.writestr(f"{folder}/{name}", content)
    return ("import", file)


def _contents() -> list[Case]:
    """What is compressed is not what the headers say."""
    text = b'"EntityNumber"\n"0200.065.765"\n'
    packed = zlib.compress(text, 9, wbits=-15)
    crc, length = zlib.crc32(text), len(text)
    bomb = zlib.compress(bytes(900_000), 9, wbits=-15)
    return [
        _raw_case(
            "a bit of its data is flipped",
            bytes([packed[0], packed[1] ^ 4]) + packed[2:],
            crc,
            length,
        ),
        _raw_case("another CRC", packed, crc ^ 1, length),
        _raw_case("shorter than it says", packed, crc, length + 1),
        _raw_case("longer than it says", packed, crc, length - 1),
        _raw_case("much longer than it says", bomb, crc, 10),
        _raw_case("data that end too early", packed[:-3], crc, length),
        _raw_case("bytes after the end of the data", packed + b"abc", crc, length),
        _raw_case("no compressed data", b"", crc, length),
        _raw_case("random bytes for data", bytes(range(7, 47)), crc, length),
    ]


def _raw_case(name: str, packed: bytes, crc: int, length: int) -> Case:
    """A member whose data, CRC and length are as given; all headers agree."""

    def make(directory: Path) -> Sequence[str | Path]:
        file = update(directory, {"contact_delete.csv": None})
        good = file.read_bytes()
        end = good.rindex(_END)
        (count, size, offset) = struct.unpack_from("<HLL", good, end + 10)
        member = b"contact_delete.csv"
        common = struct.pack("<5H3L2H", 20, 0, 8, 0, 33, crc, len(packed), length, len(member), 0)
        local = _LOCAL + common + member + packed
        entry = _CENTRAL + b"\x14\3" + common + bytes(10) + struct.pack("<L", offset) + member
        directory_bytes = good[offset : offset + size] + entry
        sizes = struct.pack(
            "<HHLL", count + 1, count + 1, len(directory_bytes), offset + len(local)
        )
        file.write_bytes(
            good[:offset] + local + directory_bytes + _END + bytes(4) + sizes + bytes(2)
        )
        return ("import", file)

    return Case(f"a member: {name}", make)


def _patched(good: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """The record that begins with the last, or for headers the first, of these signatures."""
    at = (good.rindex if signature == _END else good.index)(signature) + offset
    return good[:at] + value + good[at + len(value) :]


def _entry(good: bytes, offset: int, value: bytes) -> bytes:
    return _patched(good, _CENTRAL, offset, value)


def _both(good: bytes, offset: int, value: bytes) -> bytes:
    """A field of the first local header, and of its entry, where it lies two bytes further on."""
    return _entry(_patched(good, _LOCAL, offset, value), offset + 2, value)


def _overlapping(good: bytes) -> bytes:
    """The second member is said to lie where the first does."""
    first = good.index(_CENTRAL)
    second = good.index(_CENTRAL, first + 4)
    return good[: second + 42] + good[first + 42 : first + 46] + good[second + 46 :]


def _shifted_directory(good: bytes) -> bytes:
    end = good.rindex(_END)
    (offset,) = struct.unpack_from("<L", good, end + 16)
    return _patched(good, _END, 16, struct.pack("<L", offset - 1))


def _with_gap(good: bytes) -> bytes:
    end = good.rindex(_END)
    (offset,) = struct.unpack_from("<L", good, end + 16)
    shifted = _patched(good, _END, 16, struct.pack("<L", offset + 3))
    return shifted[:offset] + b"gap" + shifted[offset:]


def _with_zip64(good: bytes, record_at: int | None, rest: int) -> bytes:
    end = good.rindex(_END)
    (count, size, offset) = struct.unpack_from("<HLL", good, end + 10)
    record = b"PK\6\6" + struct.pack("<Q2H2L4Q", rest, 45, 45, 0, 0, count, count, size, offset)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, end if record_at is None else record_at, 1)
    return good[:end] + record + locator + good[end:]


def _too_much(directory: Path) -> Sequence[str | Path]:
    file = directory / NAME
    body, entries = b"", b""
    data = bytes(1_100_000)
    for number in range(33):
        name = f"{number:02d}.txt".encode()
        common = struct.pack("<5H3L2H", 20, 0, 8, 0, 33, 0, len(data), 270_000_000, len(name), 0)
        entries += _CENTRAL + b"\x14\3" + common + bytes(10) + struct.pack("<L", len(body)) + name
        body += _LOCAL + common + name + data
    sizes = struct.pack("<HHLL", 33, 33, len(entries), len(body))
    file.write_bytes(body + entries + _END + bytes(4) + sizes + bytes(2))
    return ("import", file)
