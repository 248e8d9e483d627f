"""The kinds of changes that an extract makes, declared once as data. No SQL.

`docs/changes.md` explains them to readers; `changes.py` finds them.
"""

from dataclasses import dataclass

from kbo_pipeline.core.tables import (
    ACTIVITY,
    ADDRESS,
    BRANCH,
    CONTACT,
    DENOMINATION,
    ENTERPRISE,
    ESTABLISHMENT,
    TABLES,
    Table,
)

BANKRUPTCY_OPENED = ("048", "049", "050")
"""Juridical situations whose meaning is the opening of a bankruptcy: excusable, not, undecided."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of change of an entity, in one table.

    Where no other kind of its table applies to what changed of an entity, `changed` does.

    Attributes:
        table: where it is seen.
        name: what it is called.
        rule: when a change is of this kind, as a sentence for readers.
        columns: the row differs in one of them.
        becomes: the first of these columns becomes one of these values, and was none of them.
        beside: rows count as before and after of each other where they agree in these columns.
    """

    table: Table
    name: str
    rule: str
    columns: tuple[str, ...] = ()
    becomes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


NEW, STOPPED, CHANGED, RENAMED = "new", "stopped", "changed", "renamed"

_PLACE = (
    "country_nl",
    "country_fr",
    "zipcode",
    "municipality_nl",
    "municipality_fr",
    "street_nl",
    "street_fr",
    "house_number",
    "box",
)

_OF_ROWS = tuple(
    Kind(table, name, rule)
    for table in TABLES
    if table.unique_key
    for name, rule in (
        (NEW, "Its number is in the register after the extract, but was not before."),
        (STOPPED, "Its number was in the register before the extract, but is not after it."),
    )
)

_OF_COLUMNS = (
    Kind(
        ENTERPRISE,
        "bankruptcy",
        "The juridical situation changes to the opening of a bankruptcy"
        f" ({', '.join(BANKRUPTCY_OPENED)}) from any other situation.",
        columns=("juridical_situation",),
        becomes=BANKRUPTCY_OPENED,
    ),
    Kind(
        ENTERPRISE,
        "situation",
        "The juridical situation changes, but not to a bankruptcy as above.",
        columns=("juridical_situation",),
    ),
    Kind(
        ENTERPRISE,
        "form",
        "The juridical form changes, or that of the companies' code of 2019.",
        columns=("juridical_form", "juridical_form_cac"),
    ),
    *(
        Kind(table, "transferred", "It now belongs to another enterprise.", ("enterprise_number",))
        for table in (ESTABLISHMENT, BRANCH)
    ),
)

_OF_NAMES = Kind(
    DENOMINATION,
    RENAMED,
    "The primary name of an enterprise changes, or the main name of an establishment unit or"
    " branch. If there is no name, the number stands for it.",
)

_OF_PLACES = Kind(
    ADDRESS,
    "moved",
    "Addresses of one type were replaced by others in different places: country, zipcode,"
    " municipality, street, house number or box differ, in either language.",
    columns=_PLACE,
    beside=("type_of_address",),
)

_OF_THE_REST = tuple(
    Kind(table, CHANGED, rule)
    for table, rule in (
        (ENTERPRISE, "Another column of its row changes: status, type, start date."),
        (ESTABLISHMENT, "Its start date changes."),
        (DENOMINATION, "Names came or went, but the main name is the same."),
        (ADDRESS, "An address came, went or changed, but the entity did not move."),
        (CONTACT, "Contacts came or went."),
        (ACTIVITY, "Activities came or went."),
        (BRANCH, "Its start date changes."),
    )
)

KINDS: tuple[Kind, ...] = tuple(
    sorted(
        (*_OF_ROWS, *_OF_COLUMNS, _OF_NAMES, _OF_PLACES, *_OF_THE_REST),
        key=lambda kind: TABLES.index(kind.table),
    )
)
"""All kinds, by table; of those that look at the same columns the first one that applies counts."""
