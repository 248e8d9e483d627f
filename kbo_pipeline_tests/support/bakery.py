"""A small register with something of everything, for the tests of those who read it."""

import datetime
from collections.abc import Iterable
from pathlib import Path

import duckdb

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.read.state_sql import SHOWN
from kbo_pipeline.read.views import create_views
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, write_extract

BAKER, PERSON, FOREIGN, LATE = "0200.065.765", "0200.068.636", "0200.171.970", "0200.245.711"
SHOP, MILL, OVEN, STALL = "2.000.000.339", "2.000.000.438", "2.000.001.032", "2.000.002.022"
BRANCH = "9.000.006.626"
BEGAN = datetime.date(2001, 2, 3)
HOSTILE = "[bold red]Bakker[/] \x1b[2J\x07 \u202egnitirw \x9b31m\nline"


def _place(
    number: str, kind: str, zipcode: str, town: tuple[str, str], *street: str | None
) -> tuple[str | None, ...]:
    """The columns of an address but the last two; street in Dutch and French, house, box."""
    return (number, kind, None, None, zipcode, *town, *street)


_TOWN = ("Zavelbeke", "Sablonrieu")
_STRUCK_OFF = datetime.date(2020, 1, 1)

_ROWS: dict[str, list[Row]] = {
    "enterprise": [
        (BAKER, "AC", "000", "2", "014", "616", BEGAN),
        (PERSON, "AC", "000", "1", None, None, BEGAN),
        (FOREIGN, "AC", "000", "2", "030", None, BEGAN),
    ],
    "establishment": [
        (SHOP, BEGAN, BAKER),
        (MILL, BEGAN, BAKER),
        (STALL, BEGAN, PERSON),
    ],
    "branch": [(BRANCH, BEGAN, FOREIGN)],
    "denomination": [
        (BAKER, "1", "001", "Boulangerie Céleste"),
        (BAKER, "2", "002", "BC"),
        (BAKER, "2", "003", "Koek & Zoon"),
        (SHOP, "2", "003", "De Gouden Korst"),
        (PERSON, "0", "001", "Céleste, Anna"),
        (STALL, "2", "003", "Anna's Kraam"),
        (FOREIGN, "4", "001", "Crumbs Ltd"),
        (BRANCH, "1", "004", "Crumbs Belgique"),
    ],
    "address": [
        (*_place(BAKER, "REGO", "1005", _TOWN, "Kaai", "Quai", "1", "2"), None, _STRUCK_OFF),
        (
            *_place(BAKER, "REGO", "9007", ("Leieland", "Pays"), "Weg", "Voie", "3", None),
            None,
            None,
        ),
        (*_place(SHOP, "BAET", "1005", _TOWN, "Kaai", "Quai", "5", None), "Hal", None),
        (*_place(STALL, "BAET", "2017", ("Markt", "Marché"), "Plein", None, "1", None), None, None),
    ],
    "contact": [(BAKER, "ENT", "TEL", "02 055 01 99"), (BAKER, "ENT", "FAX", HOSTILE)],
    "activity": [
        (BAKER, "001", "2008", "10710", "MAIN"),
        (BAKER, "001", "2025", "47240", "SECO"),
        (BAKER, "003", "2025", "10710", "MAIN"),
        (SHOP, "001", "2025", "47240", "MAIN"),
        (STALL, "001", "2025", "47811", "MAIN"),
    ],
    "code": [
        ("Status", "AC", "NL", "Actief"),
        ("Status", "AC", "FR", "Actif"),
        ("JuridicalSituation", "000", "NL", "Normale toestand"),
        ("JuridicalSituation", "000", "FR", "Situation normale"),
        ("JuridicalSituation", "000", "DE", "Normaler Zustand"),
        ("JuridicalSituation", "050", "NL", "Opening faillissement"),
        ("TypeOfEnterprise", "2", "NL", "Rechtspersoon"),
        ("JuridicalForm", "014", "DE", "Aktiengesellschaft"),
        ("Nace2008", "10710", "NL", "Brood, zoals het in 2008 heette"),
        ("Nace2025", "10710", "NL", "Brood"),
        ("Nace2025", "47240", "FR", "Détail de pain"),
        ("Classification", "MAIN", "NL", "Hoofdactiviteit"),
    ],
}

Rows = dict[str, list[Row]]
Deletes = dict[str, list[str]]

_SECOND: tuple[Rows, Deletes] = (  # the baker goes bankrupt and changes his name, the mill closes
    {
        "enterprise": [
            (BAKER, "AC", "050", "2", "014", "616", BEGAN),
            (LATE, "AC", "000", "2", "014", None, BEGAN),
        ],
        "establishment": [(OVEN, BEGAN, BAKER)],
        "denomination": [
            (BAKER, "1", "001", "Boulangerie Céleste"),
            (BAKER, "2", "001", "Bakkerij Hemels"),
            (LATE, "2", "001", "Laatkomer"),
        ],
        "code": _ROWS["code"],
    },
    {"enterprise": [BAKER], "establishment": [MILL], "denomination": [BAKER]},
)
_THIRD: tuple[Rows, Deletes] = (  # the foreigner leaves
    {"code": _ROWS["code"]},
    {
        "enterprise": [FOREIGN],
        "branch": [BRANCH],
        "denomination": [FOREIGN, BRANCH],
    },
)


def make_bakery(directory: Path, core: Core | None = None) -> Core:
    """Imports a Full and two Updates, 140 to 142; returns the core that did."""
    core = core or Core(directory / "core", batch_rows=1000)
    core.import_zip(write_extract(directory, ExtractKey(140, "full"), _ROWS))
    for number, (rows, deletes) in enumerate((_SECOND, _THIRD), start=141):
        core.import_zip(write_extract(directory, ExtractKey(number, "update"), rows, deletes))
    return core


def leave_out(database: Path, numbers: Iterable[str]) -> None:
    """Makes a published file leave out natural persons, and also who has one of these numbers."""
    with duckdb.connect(str(database)) as connection:
        for statement in create_views("legal-persons"):
            connection.execute(statement)
        rows = [[number] for number in numbers]
        connection.executemany(f"DELETE FROM {SHOWN} WHERE number = ?", rows)
