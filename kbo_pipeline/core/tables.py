"""The tables that KBO Open Data publishes, declared once as data.

Staging, register, views, assets, checks and made-up samples derive from these declarations. A fact
about one table is a field here, never a condition on its name elsewhere. No SQL, no I/O.

Source: KBO Open Data cookbook R018, and the extracts themselves where the two differ.
"""

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

ColumnType = Literal["VARCHAR", "DATE"]

Privacy = Literal["full", "legal-persons"]
"""Who is in views and exports: all, or known legal persons and what belongs to them alone."""

Since = int | datetime.date | None
"""From when on KBO sends something: an extract number, or a snapshot date; None for always.

A number is exact. A date is for what is older than the extracts that people have today: in which
number it came is not known, and a Full of those years must not be judged by guesses.
"""

ENTERPRISE_NUMBER = ("0", "1")
ESTABLISHMENT_NUMBER = ("2", "3", "4", "5", "6", "7", "8")  # law of 16 January 2003
BRANCH_NUMBER = ("9",)
ENTITY_NUMBER = (*ENTERPRISE_NUMBER, *ESTABLISHMENT_NUMBER, *BRANCH_NUMBER)

_GROUP = r"\.[0-9]{3}"
ANY_NUMBER = f"[0-9]{{4}}{_GROUP * 2}|[0-9]{_GROUP * 3}"
"""A regular expression, for Python and DuckDB, of a number in either of KBO's two shapes."""

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def number_pattern(digits: tuple[str, ...]) -> str:
    """A regular expression, for Python and DuckDB, of the numbers that begin with these digits."""
    long = "".join(digit for digit in digits if digit in ENTERPRISE_NUMBER)
    short = "".join(digit for digit in digits if digit not in ENTERPRISE_NUMBER)
    shapes = {long: f"[{long}][0-9]{{3}}{_GROUP * 2}", short: f"[{short}]{_GROUP * 3}"}
    return "|".join(shape for first, shape in shapes.items() if first)


@cache  # a look-up asks for hundreds of names
def _snake_case(csv_name: str) -> str:
    return _WORD_START.sub("_", csv_name).lower()


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a KBO file.

    Attributes:
        csv_name: the name in the header, such as `JuridicalFormCAC`.
        description: what the value means, for people who do not know KBO.
        type: `DATE` for the `dd-mm-yyyy` columns, `VARCHAR` for all others: nothing is a number.
        since: extracts of before may lack the column, whose values are NULL then; later ones must
            have it. It stands between the others, in the order of the file, or at the end.
        code_category: the `Category` of code.csv that explains the value; `{nace_version}` in it
            stands for the row's own value of that column; None when the value is no code.
        bare_when_empty: KBO writes an empty value as `,,` instead of `,"",`.
        number: the column holds numbers `dnnn.nnn.nnn`, for establishment units and branches
            `d.nnn.nnn.nnn`, and never nothing: the digits `d` that occur; empty for other columns.
        takes_any_number: numbers of either shape are taken, whatever their first digit: those of
            branches, for which the cookbook (2.9) allows both. Others than `number` are unusual.
    """

    csv_name: str
    description: str
    type: ColumnType = "VARCHAR"
    since: Since = None
    code_category: str | None = None
    bare_when_empty: bool = False
    number: tuple[str, ...] = ()
    takes_any_number: bool = False

    @property
    def name(self) -> str:
        """The column's name in the register: `csv_name` in snake_case."""
        return _snake_case(self.csv_name)

    @property
    def usual_number(self) -> str:
        """A regular expression, for Python and DuckDB, of the numbers that the column holds."""
        return number_pattern(self.number)

    @property
    def allowed_number(self) -> str:
        """A regular expression, for Python and DuckDB, of the numbers that the column may hold."""
        return ANY_NUMBER if self.takes_any_number else self.usual_number


@cache
def _names(table: "Table") -> tuple[str, ...]:
    return tuple(column.name for column in table.columns)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One kind of rows that KBO publishes; the first column is its key.

    Each is equal to itself alone, so that finding it in a dictionary does not hash its columns.

    Attributes:
        name: the table's name in the register, which is also the stem of its CSV files.
        description: one row stands for what; written for readers of the catalogue.
        columns: in the order of the CSV file.
        since: Fulls of before may lack the file, and have no rows then; later ones must have it.
        unique_key: a key has one row at most (of two, the later one in the file wins); else a key
            owns any number of rows.
        natural_key: the columns that together name one row, for people and documentation.
        may_be_empty: a Full without any row of it is odd, but can be.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    since: Since = None
    unique_key: bool = False
    natural_key: tuple[str, ...] = ()
    may_be_empty: bool = True

    @property
    def key(self) -> str:
        """Name of the key column: an Update deletes and inserts all rows of a key at once."""
        return self.columns[0].name

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of all columns, in order."""
        return _names(self)


ENTERPRISE = Table(
    name="enterprise",
    description="One row for an entity: a legal person, a natural person with a trade, or another"
    " registered entity.",
    columns=(
        Column(
            "EnterpriseNumber",
            "Number of the entity, dotted: `0nnn.nnn.nnn` or `1nnn.nnn.nnn`.",
            number=ENTERPRISE_NUMBER,
        ),
        Column("Status", "Status of the entity; `AC` is active.", code_category="Status"),
        Column(
            "JuridicalSituation",
            "Legal situation, such as normal, bankrupt or dissolved.",
            code_category="JuridicalSituation",
        ),
        Column(
            "TypeOfEnterprise",
            "Natural person (1) or legal person (2).",
            code_category="TypeOfEnterprise",
        ),
        Column(
            "JuridicalForm",
            "Legal form; none for natural persons.",
            code_category="JuridicalForm",
            bare_when_empty=True,
        ),
        Column(
            "JuridicalFormCAC",
            "Legal form as the companies' code of 2019 reads it, until the statutes are adapted.",
            since=datetime.date(2019, 5, 1),  # when that code came into force
            code_category="JuridicalForm",
            bare_when_empty=True,
        ),
        Column("StartDate", "Date on which the entity began.", type="DATE"),
    ),
    unique_key=True,
    natural_key=("enterprise_number",),
    may_be_empty=False,
)

ESTABLISHMENT = Table(
    name="establishment",
    description="One row for an establishment unit: a place where an entity works.",
    columns=(
        Column(
            "EstablishmentNumber",
            "Number of the establishment unit, dotted: `d.nnn.nnn.nnn`, `d` from 2 to 8.",
            number=ESTABLISHMENT_NUMBER,
        ),
        Column("StartDate", "Date on which the establishment unit began.", type="DATE"),
        Column(
            "EnterpriseNumber",
            "Number of the entity that it belongs to.",
            number=ENTERPRISE_NUMBER,
        ),
    ),
    unique_key=True,
    natural_key=("establishment_number",),
)

DENOMINATION = Table(
    name="denomination",
    description="One row for a name of an entity, establishment unit or branch, in one language.",
    columns=(
        Column(
            "EntityNumber",
            "Number of the entity, establishment unit or branch.",
            number=ENTITY_NUMBER,
            takes_any_number=True,
        ),
        Column(
            "Language",
            "Language of the name: 0 unknown, 1 FR, 2 NL, 3 DE, 4 EN.",
            code_category="Language",
        ),
        Column(
            "TypeOfDenomination",
            "Kind of name: 001 name, 002 abbreviation, 003 commercial name, 004 branch name.",
            code_category="TypeOfDenomination",
        ),
        Column("Denomination", "The name; `Surname, First` for natural persons."),
    ),
    natural_key=("entity_number", "language", "type_of_denomination", "denomination"),
)

ADDRESS = Table(
    name="address",
    description="One row for an address of an entity, establishment unit or branch. Natural persons"
    " have none of their own.",
    columns=(
        Column(
            "EntityNumber",
            "Number of the entity, establishment unit or branch.",
            number=ENTITY_NUMBER,
            takes_any_number=True,
        ),
        Column(
            "TypeOfAddress",
            "REGO seat, BAET establishment unit, ABBR branch, OBAD oldest active establishment"
            " unit.",
            code_category="TypeOfAddress",
        ),
        Column("CountryNL", "Country in Dutch; none for Belgium.", bare_when_empty=True),
        Column("CountryFR", "Country in French; none for Belgium.", bare_when_empty=True),
        Column("Zipcode", "Postal code, as text: `0999`, `5701 SB`."),
        Column("MunicipalityNL", "Municipality in Dutch."),
        Column("MunicipalityFR", "Municipality in French."),
        Column("StreetNL", "Street in Dutch."),
        Column("StreetFR", "Street in French."),
        Column("HouseNumber", "House number, without the box."),
        Column("Box", "Box number."),
        Column("ExtraAddressInfo", "Anything else that belongs to the address."),
        Column(
            "DateStrikingOff",
            "Date on which the address was struck off; none while it is valid.",
            type="DATE",
            bare_when_empty=True,
        ),
    ),
    natural_key=("entity_number", "type_of_address"),
)

CONTACT = Table(
    name="contact",
    description="One row for a telephone number, e-mail or web address of an entity, establishment"
    " unit or branch.",
    columns=(
        Column(
            "EntityNumber",
            "Number of the entity, establishment unit or branch.",
            number=ENTITY_NUMBER,
            takes_any_number=True,
        ),
        Column("EntityContact", "Whose contact: ENT, EST or BRA.", code_category="EntityContact"),
        Column("ContactType", "TEL, EMAIL, WEB; others occur.", code_category="ContactType"),
        Column("Value", "The number or address, as it was given."),
    ),
    natural_key=("entity_number", "entity_contact", "contact_type", "value"),
)

ACTIVITY = Table(
    name="activity",
    description="One row for an activity of an entity or establishment unit, in one version of the"
    " NACE nomenclature.",
    columns=(
        Column(
            "EntityNumber",
            "Number of the entity or establishment unit.",
            number=ENTITY_NUMBER,
            takes_any_number=True,
        ),
        Column(
            "ActivityGroup",
            "Who registered it: VAT, social security, ...",
            code_category="ActivityGroup",
        ),
        Column("NaceVersion", "Version of the nomenclature: 2003, 2008 or 2025."),
        Column(
            "NaceCode",
            "NACE-BEL code, as text; its meaning depends on the version.",
            code_category="Nace{nace_version}",
        ),
        Column("Classification", "MAIN, SECO or ANCI.", code_category="Classification"),
    ),
    natural_key=("entity_number", "activity_group", "nace_version", "nace_code", "classification"),
)

BRANCH = Table(
    name="branch",
    description="One row for a branch in Belgium of a foreign entity.",
    since=datetime.date(2019, 1, 1),  # importers of 2014 to 2018 know no branch.csv
    columns=(
        Column(
            "Id",
            "Number of the branch, dotted: `9.nnn.nnn.nnn`.",
            number=BRANCH_NUMBER,
            takes_any_number=True,
        ),
        Column("StartDate", "Date on which the branch began.", type="DATE"),
        Column(
            "EnterpriseNumber",
            "Number of the foreign entity.",
            number=ENTERPRISE_NUMBER,
            takes_any_number=True,
        ),
    ),
    unique_key=True,
    natural_key=("id",),
)

CODE = Table(
    name="code",
    description="One row for what a code means, in one language. Every extract brings the whole"
    " list.",
    columns=(
        Column("Category", "Kind of code, such as `JuridicalForm` or `Nace2025`."),
        Column("Code", "The code, as text."),
        Column("Language", "Language of the description: FR, NL or DE."),
        Column("Description", "What the code means."),
    ),
    natural_key=("category", "code", "language"),
)


def is_sent(since: Since, number: int, snapshot_date: datetime.date) -> bool:
    """Tells whether an extract must have what KBO sends since then."""
    if since is None:
        return True
    return number >= since if isinstance(since, int) else snapshot_date >= since


TABLES: tuple[Table, ...] = (
    ENTERPRISE,
    ESTABLISHMENT,
    DENOMINATION,
    ADDRESS,
    CONTACT,
    ACTIVITY,
    BRANCH,
)
"""The seven tables that extracts change by key, and batches apply."""

NUMBERED = tuple(table for table in TABLES if table.unique_key)
"""Of these, the tables of what has a number of its own."""

UNITS = tuple(table for table in NUMBERED if table is not ENTERPRISE)
"""Of these, what belongs to an enterprise: establishment units and branches."""

PARTS = tuple(table for table in TABLES if not table.unique_key)
"""The tables of names, addresses, contacts and activities."""

ALL_TABLES: tuple[Table, ...] = (*TABLES, CODE)
"""The seven tables, and `code`, which every extract replaces whole."""

SECTIONS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "2003": (
        *(("A", 1, 2), ("B", 5, 5), ("C", 10, 14), ("D", 15, 37), ("E", 40, 41), ("F", 45, 45)),
        *(("G", 50, 52), ("H", 55, 55), ("I", 60, 64), ("J", 65, 67), ("K", 70, 74)),
        *(("L", 75, 75), ("M", 80, 80), ("N", 85, 85), ("O", 90, 93), ("P", 95, 97)),
        ("Q", 99, 99),
    ),
    "2008": (
        *(("A", 1, 3), ("B", 5, 9), ("C", 10, 33), ("D", 35, 35), ("E", 36, 39), ("F", 41, 43)),
        *(("G", 45, 47), ("H", 49, 53), ("I", 55, 56), ("J", 58, 63), ("K", 64, 66)),
        *(("L", 68, 68), ("M", 69, 75), ("N", 77, 82), ("O", 84, 84), ("P", 85, 85)),
        *(("Q", 86, 88), ("R", 90, 93), ("S", 94, 96), ("T", 97, 98), ("U", 99, 99)),
    ),
    "2025": (
        *(("A", 1, 3), ("B", 5, 9), ("C", 10, 33), ("D", 35, 35), ("E", 36, 39), ("F", 41, 43)),
        *(("G", 46, 47), ("H", 49, 53), ("I", 55, 56), ("J", 58, 60), ("K", 61, 63)),
        *(("L", 64, 66), ("M", 68, 68), ("N", 69, 75), ("O", 77, 82), ("P", 84, 84)),
        *(("Q", 85, 85), ("R", 86, 88), ("S", 90, 93), ("T", 94, 96), ("U", 97, 98)),
        ("V", 99, 99),
    ),
}
"""By version: the letter of each section, its first and its last division."""

LEVELS: dict[int, str] = {
    1: "section",
    2: "division",
    3: "group",
    4: "class",
    5: "subclass",
    7: "detail",
}
"""The name of a level by the length of its codes; the one of 7 digits is KBO's own."""


def divisions() -> Iterator[tuple[str, str, str]]:
    """Each division: the version, its two digits, the letter of its section."""
    for version, sections in SECTIONS.items():
        for letter, first, last in sections:
            for division in range(first, last + 1):
                yield version, f"{division:02d}", letter
