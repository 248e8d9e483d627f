"""One enterprise from the published register, with all that belongs to it, at one extract.

A table is read once, by key, in all versions up to the extract: they are both the state and the
history. The tables are sorted by key, so DuckDB reads some thousand rows of each. Which numbers may
be shown is decided by the same table as in the views and macros. Codes are read once for all
look-ups in an open register, which never changes.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.core.sql import listed, union_all
from kbo_pipeline.core.tables import (
    ACTIVITY,
    ADDRESS,
    BRANCH,
    CODE,
    CONTACT,
    DENOMINATION,
    ENTERPRISE,
    ESTABLISHMENT,
    PARTS,
    UNITS,
    Table,
)
from kbo_pipeline.read.history import Meanings, Row, codes_in, history
from kbo_pipeline.read.profile_sql import CLASSIFICATIONS
from kbo_pipeline.read.state_sql import (
    HIDES,
    NAME_TYPES,
    PRIMARY_NAME_LANGUAGES,
    SHOWN,
    placeholders,
    rows_for,
)
from kbo_pipeline.read.types import (
    Activity,
    Address,
    Branch,
    Contact,
    Enterprise,
    Establishment,
    Language,
    Name,
    PublishedExtract,
    Term,
    dotted,
    right_check_digits,
    table_of,
)

_NAME_LANGUAGES = tuple(code for code, _ in PRIMARY_NAME_LANGUAGES)
_FEW = 20  # values for which a query each is quicker than a list


CodeMeaning = tuple[str, str, str, str, int, int | None]
"""Category, code, language, description; the extract from which on it holds, and up to which."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What each look-up in a register needs, and what never changes while it is open.

    Attributes:
        leaves_out_others: it shows known legal persons alone.
        with_branches: the few enterprises that have branches in some row version.
        meanings: of each code, in all categories and at all extracts.
    """

    leaves_out_others: bool
    with_branches: frozenset[str]
    meanings: Mapping[str, Sequence[CodeMeaning]]


def read_facts(database: Database) -> Facts:
    """Reads the facts of a register, the default database."""
    meanings: dict[str, list[CodeMeaning]] = defaultdict(list)
    for row in database.execute(_MEANINGS).fetchall():
        meanings[row[1]].append(row)
    return Facts(
        leaves_out_others=database.row(HIDES) is not None,
        with_branches=frozenset(n for (n,) in database.execute(_WITH_BRANCHES).fetchall()),
        meanings=dict(meanings),
    )


def look_up(
    database: Database,
    facts: Facts,
    extracts: Sequence[PublishedExtract],
    text: str | int,
    extract: PublishedExtract,
    language: Language,
) -> Enterprise:
    """Reads the enterprise of a number at an extract, as `PublishedRegister.enterprise` promises.

    Raises:
        NotFoundError: there is none; says why, and what to do.
    """
    asked = dotted(text)
    reader = _Reader(database, facts, extracts, extract, language)
    number = reader.enterprise_number(asked)
    enterprise = reader.enterprise(number)
    if enterprise is None:
        why = reader.why_not(ENTERPRISE, number)
        raise NotFoundError(why if asked == number else f"{asked}: belongs to {why}")
    return enterprise


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one enterprise at an extract, in a language."""

    database: Database
    facts: Facts
    extracts: Sequence[PublishedExtract]
    extract: PublishedExtract
    language: Language

    def enterprise_number(self, number: str) -> str:
        """The number of the enterprise that a number belongs to."""
        table = table_of(number)
        if table is ENTERPRISE:
            return number
        row = self.database.row(_owner(table), at=self.extract.number, number=number)
        if row is None or self._hidden([number]):
            raise NotFoundError(self.why_not(table, number))
        return str(row[0])

    def why_not(self, table: Table, number: str) -> str:
        """Why a number cannot be shown at the extract."""
        times = self.database.execute(_times(table), number=number).fetchall()
        if not times:
            right = right_check_digits(number)
            if right is not None and not number.endswith(right):
                return (
                    f"{number}: no such number: its last two digits would be {right}; check how it"
                    " is written"
                )
            known = f"{self.extracts[-1].key} to {self.extracts[0].key}"
            return f"{number}: not in the register, in none of the extracts {known}"
        if self._hidden([number]):
            return f"{number}: left out by KBO_PRIVACY"
        first, at = times[0][0], self.extract.number
        if first > at:
            return f"{number}: not in the register at extract {at}; it is from {first} on"
        last = max(end for _, end in times if end is not None and end <= at) - 1
        back = next((f", and again from {begin} on" for begin, _ in times if begin > at), "")
        return (
            f"{number}: not in the register at extract {at}; it was from {first} to {last}{back};"
            f" ask for one of these (--at {first})"
        )

    def enterprise(self, number: str) -> Enterprise | None:
        """Reads an enterprise; None if there is none at the extract, or it may not be shown."""
        versions = {ENTERPRISE: self._versions(ENTERPRISE, ENTERPRISE.key, [number])}
        current = self._current(versions[ENTERPRISE])
        if not current:
            return None
        for table in UNITS:
            has_any = table is not BRANCH or number in self.facts.with_branches
            versions[table] = self._versions(table, ENTERPRISE.key, [number] if has_any else [])
        units = {row[table.key] for table in UNITS for row in versions[table]}
        hidden = self._hidden([number, *sorted(units)])
        if number in hidden:
            return None
        for table in UNITS:
            versions[table] = [row for row in versions[table] if row[table.key] not in hidden]
        places = [row[table.key] for table in UNITS for row in self._current(versions[table])]
        for table in PARTS:
            versions[table] = self._versions(table, table.key, [number, *places])
        meanings = self._meanings(versions)
        own = {
            table: [row for row in rows if table.unique_key or row[table.key] == number]
            for table, rows in versions.items()
        }
        dates = {extract.number: extract.snapshot_date for extract in self.extracts}
        (row,) = current
        parts = _Parts(
            {table: self._current_by_key(table, versions[table]) for table in PARTS},
            meanings,
            self.language,
        )
        term = partial(meanings.term, ENTERPRISE, row)
        fields = parts.of(number, row)
        name, name_language = _primary_name(number, fields["names"])
        return Enterprise(
            **(fields | {"name": name}),
            primary_name_language=name_language,
            status=term("status"),
            situation=term("juridical_situation"),
            type=term("type_of_enterprise"),
            form=term("juridical_form"),
            form_cac=term("juridical_form_cac"),
            establishments=tuple(
                Establishment(**parts.of(unit[ESTABLISHMENT.key], unit))
                for unit in self._current(versions[ESTABLISHMENT])
            ),
            branches=tuple(
                Branch(**parts.of(unit[BRANCH.key], unit))
                for unit in self._current(versions[BRANCH])
            ),
            history=history(own, self.extract.number, dates, meanings),
            extract=self.extract,
        )

    def _hidden(self, numbers: Sequence[str]) -> set[str]:
        """Those of some numbers that `KBO_PRIVACY` leaves out."""
        if not self.facts.leaves_out_others:
            return set()
        return {*numbers} - {n for (n,) in rows_for(self.database, _shown, "number", numbers)}

    def _versions(self, table: Table, column: str, numbers: Sequence[str]) -> list[Row]:
        statement = partial(_versions, table, column)
        rows = rows_for(self.database, statement, "number", numbers, at=self.extract.number)
        columns = _columns(table)
        return [dict(zip(columns, row, strict=True)) for row in sorted(rows, key=_as_texts)]

    def _meanings(self, versions: Mapping[Table, Iterable[Row]]) -> Meanings:
        at = self.extract.number
        rows = (
            (category, code, language, description)
            for one in codes_in(versions)
            for category, code, language, description, first, end in self.facts.meanings.get(
                one, ()
            )
            if first <= at and (end is None or end > at)
        )
        return Meanings(rows, self.language)

    def _current(self, rows: Iterable[Row]) -> list[Row]:
        """Those of some row versions that hold at the extract."""
        at = self.extract.number
        return [
            row
            for row in rows
            if row["_deleted_at_extract"] is None or row["_deleted_at_extract"] > at
        ]

    def _current_by_key(self, table: Table, rows: Iterable[Row]) -> dict[str, list[Row]]:
        by_key: dict[str, list[Row]] = defaultdict(list)
        for row in self._current(rows):
            by_key[row[table.key]].append(row)
        return by_key


@dataclass(frozen=True, slots=True)
class _Parts:
    """Makes values of the rows that are of one number: its names, addresses, ..."""

    rows: Mapping[Table, Mapping[str, list[Row]]]
    meanings: Meanings
    language: Language

    def of(self, number: str, row: Row) -> dict[str, Any]:
        """The fields of an `Entity`, from the row of its own table and those of its parts."""
        names, addresses, contacts, activities = (
            self.rows[table].get(number, ()) for table in (DENOMINATION, ADDRESS, CONTACT, ACTIVITY)
        )
        sorted_names = sorted(map(self._name, names), key=_name_order)
        return {
            "number": number,
            "start_date": row["start_date"],
            "name": next((name.text for name in sorted_names if name.text), number),
            "names": tuple(sorted_names),
            "addresses": tuple(map(self._address, sorted(addresses, key=_address_order))),
            "contacts": tuple(map(self._contact, contacts)),
            "activities": tuple(sorted(map(self._activity, activities), key=_activity_order)),
        }

    def _name(self, row: Row) -> Name:
        term = partial(self.meanings.term, DENOMINATION, row)
        return Name(row["denomination"], term("language"), term("type_of_denomination"))

    def _address(self, row: Row) -> Address:
        languages = ("nl", "fr") if self.language == "nl" else ("fr", "nl")

        def local(name: str) -> str | None:
            texts = (row[f"{name}_{language}"] for language in languages)
            return next((text for text in texts if text is not None), None)

        return Address(
            type=self.meanings.term(ADDRESS, row, "type_of_address"),
            street=local("street"),
            house_number=row["house_number"],
            box=row["box"],
            zipcode=row["zipcode"],
            municipality=local("municipality"),
            country=local("country"),
            extra=row["extra_address_info"],
            struck_off=row["date_striking_off"],
        )

    def _contact(self, row: Row) -> Contact:
        return Contact(self.meanings.term(CONTACT, row, "contact_type"), row["value"])

    def _activity(self, row: Row) -> Activity:
        term = partial(self.meanings.term, ACTIVITY, row)
        return Activity(
            row["nace_version"], term("nace_code"), term("classification"), term("activity_group")
        )


def _place(order: Sequence[str], term: Term | None) -> int:
    return order.index(term.code) if term is not None and term.code in order else len(order)


def _primary_name(number: str, names: Sequence[Name]) -> tuple[str, str | None]:
    """The primary name of an enterprise and its language, from its names in their order."""
    for name in names:
        code = name.language.code if name.language else None
        is_official = name.type is not None and name.type.code == NAME_TYPES[0]
        if is_official and code in _NAME_LANGUAGES and name.text is not None:
            return name.text, code
    return number, None


def _name_order(name: Name) -> tuple[object, ...]:
    return (_place(NAME_TYPES, name.type), _place(_NAME_LANGUAGES, name.language), name.text or "")


def _address_order(row: Row) -> tuple[object, ...]:
    """As `state_sql.address_order` has it, which chooses the seat in views and searches."""
    struck_off = row["date_striking_off"]
    values = ((row[name] is None, row[name]) for name in ADDRESS.column_names[1:])
    return (struck_off is not None, -struck_off.toordinal() if struck_off else 0, *values)


def _activity_order(activity: Activity) -> tuple[object, ...]:
    version = activity.nace_version or ""
    return (
        tuple(-ord(letter) for letter in version),  # the newest version first
        _place(CLASSIFICATIONS, activity.classification),
        activity.nace.code if activity.nace else "",
        activity.group.code if activity.group else "",
    )


def _as_texts(row: Iterable[object]) -> list[str]:
    return list(map(str, row))


@cache
def _columns(table: Table) -> tuple[str, ...]:
    return (*table.column_names, "_extract_number", "_deleted_at_extract")


@cache
def _versions(table: Table, column: str, count: int) -> str:
    """All row versions up to `$at` with one of the values `$number0`, ... in a column.

    DuckDB finds the rows of one value in half the time that it needs for a list of two, because it
    reads the other columns of a part of the table only where the first one matches.
    """
    rows = f"""SELECT {listed(_columns(table))}
FROM main.{table.name}
WHERE _extract_number <= $at"""
    if count > _FEW:
        return f"{rows} AND {column} IN ({placeholders('number', count)})"
    return union_all(f"{rows} AND {column} = $number{place}" for place in range(count))


def _owner(table: Table) -> str:
    """The enterprise of a key `$number` at `$at`; for the tables of `UNITS`."""
    return f"""SELECT {ENTERPRISE.key}
FROM main.{table.name}
WHERE {table.key} = $number
    AND _extract_number <= $at
    AND (_deleted_at_extract IS NULL OR _deleted_at_extract > $at)"""


def _shown(count: int) -> str:
    """Those of the keys `$number0`, ... that are shown, in a register that hides others."""
    return f"SELECT number\nFROM main.{SHOWN}\nWHERE number IN ({placeholders('number', count)})"


def _times(table: Table) -> str:
    """When a key `$number` was in the register: the extracts of its versions, the oldest first."""
    return f"""SELECT _extract_number, _deleted_at_extract
FROM main.{table.name}
WHERE {table.key} = $number
ORDER BY ALL"""


_WITH_BRANCHES = f"SELECT DISTINCT {ENTERPRISE.key} FROM main.{BRANCH.name}"

_MEANINGS = f"""SELECT {listed(CODE.column_names)}, _extract_number, _deleted_at_extract
FROM main.{CODE.name}"""
"""The meanings of all codes at all extracts."""
