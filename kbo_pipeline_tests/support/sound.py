"""Rows of extracts in which the checks find nothing."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline_tests.support.zips import Row, write_extract

DATE = datetime.date(2001, 2, 3)


def enterprise(n: int) -> str:
    """The number of an enterprise, with right check digits."""
    first = f"{2_000_000 + n:08d}"
    digits = f"{first}{97 - int(first) % 97:02d}"
    return f"{digits[:4]}.{digits[4:7]}.{digits[7:]}"


def establishment(n: int) -> str:
    """The number of an establishment unit, with right check digits."""
    first = f"{20_000_000 + n:08d}"
    digits = f"{first}{97 - int(first) % 97:02d}"
    return f"{digits[0]}.{digits[1:4]}.{digits[4:7]}.{digits[7:]}"


def branch(n: int) -> str:
    """The number of a branch, which has no check digits."""
    return f"9.000.000.{n:03d}"


CODES: list[Row] = [
    (category, code, "NL", f"{category} {code}")
    for category, code in (
        ("Status", "AC"),
        ("JuridicalSituation", "000"),
        ("TypeOfEnterprise", "2"),
        ("JuridicalForm", "014"),
        ("Language", "2"),
        ("TypeOfDenomination", "001"),
        ("TypeOfAddress", "REGO"),
        ("EntityContact", "ENT"),
        ("ContactType", "TEL"),
        ("ActivityGroup", "001"),
        ("Nace2008", "01110"),
        ("Classification", "MAIN"),
    )
]


def enterprise_row(number: str, date: datetime.date | None = DATE) -> Row:
    return (number, "AC", "000", "2", "014", None, date)


def address_row(number: str, struck_off: datetime.date | None = None) -> Row:
    rest = ("1000", "Brussel", "Bruxelles", "Straat", "Rue", "1", None, None)
    return (number, "REGO", None, None, *rest, struck_off)


def activity_row(number: str, version: str = "2008", code: str = "01110") -> Row:
    return (number, "001", version, code, "MAIN")


@dataclass
class Register:
    """Rows of an extract in which nothing is wrong: `size` enterprises with all that they have."""

    size: int = 3
    rows: dict[str, list[Row]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        enterprises = [enterprise(n) for n in range(self.size)]
        self.rows = {
            "enterprise": [enterprise_row(number) for number in enterprises],
            "establishment": [
                (establishment(n), DATE, number) for n, number in enumerate(enterprises)
            ],
            "branch": [(branch(n), DATE, number) for n, number in enumerate(enterprises[:3])],
            "denomination": [(number, "2", "001", f"Name {number}") for number in enterprises],
            "address": [
                address_row(number)
                for number in (*enterprises, establishment(0), *map(branch, range(3)))
            ],
            "contact": [(number, "ENT", "TEL", "02 123") for number in enterprises],
            "activity": [activity_row(number) for number in (*enterprises, establishment(1))],
            "code": list(CODES),
        }

    def with_rows(self, table: str, *rows: Row) -> "Register":
        """The same, with these rows more."""
        self.rows[table] = [*self.rows[table], *rows]
        return self


def update(
    directory: Path,
    key: ExtractKey,
    inserts: dict[str, list[Row]],
    deletes: dict[str, list[str]] | None = None,
) -> Path:
    """An Update; its codes are those of `CODES`, unless it brings others."""
    return write_extract(directory, key, {"code": CODES, **inserts}, deletes or {})
