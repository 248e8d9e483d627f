"""What a case of faulty input is, and how its ZIP is made."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline_tests.support.zips import Row, write_extract

UPDATE = ExtractKey(141, "update")
LATER_FULL = ExtractKey(142, "full")
NUMBER = "0200.065.765"
OTHER_NUMBER = "0403.449.823"
ROWS: dict[str, list[Row]] = {
    "enterprise": [(NUMBER, "AC", "010", None, None, None, None)],
    "contact": [(NUMBER, "ENT", "WEB", "example.org"), (OTHER_NUMBER, "ENT", "TEL", "02")],
    "branch": [("9.000.006.626", None, NUMBER)],
}
DELETES = {"contact": [NUMBER]}
NAME = "KboOpenData_0141_2025_05_23_Update.zip"


@dataclass(frozen=True)
class Case:
    """One faulty input.

    Attributes:
        name: what is wrong with it.
        make: writes what it needs into a directory; returns the arguments of `kbo`.
        settings: environment of the command; `DIR` in it stands for that directory.
        is_first: the register is empty still.
    """

    name: str
    make: Callable[[Path], Sequence[str | Path]]
    settings: Mapping[str, str] = field(default_factory=dict)
    is_first: bool = False


def update(directory: Path, members: Mapping[str, str | bytes | None] | None = None) -> Path:
    """A sound Update, or one with other members."""
    return write_extract(directory, UPDATE, ROWS, DELETES, members=members)


def zip_case(name: str, spoil: Callable[[bytes], bytes]) -> Case:
    """A sound Update whose bytes are changed."""

    def make(directory: Path) -> Sequence[str | Path]:
        file = update(directory)
        file.write_bytes(spoil(file.read_bytes()))
        return ("import", file)

    return Case(name, make)


def archive_case(name: str, change: Callable[[zipfile.ZipFile], None]) -> Case:
    """A sound Update to which something is added, as zipfile writes it."""

    def make(directory: Path) -> Sequence[str | Path]:
        file = update(directory)
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
            change(archive)
        return ("import", file)

    return Case(name, make)


def member_case(
    name: str, member: str, content: str | bytes | None, *, key: ExtractKey = UPDATE
) -> Case:
    """An extract one of whose members is another, or missing for None."""

    def make(directory: Path) -> Sequence[str | Path]:
        deletes = DELETES if key.type == "update" else None
        return (
            "import",
            write_extract(directory, key, ROWS, deletes, members={member: content}),
        )

    return Case(name, make)


def command_case(name: str, *arguments: str, **settings: str) -> Case:
    """A command with arguments or settings that are wrong."""
    return Case(name, lambda directory: arguments, settings)
