"""One enterprise from the published register, with all that belongs to it, at one extract.

A table is read once, by key, in all versions up to the extract: they are both the state and the
history. Which numbers may be shown, the table says that the views and macros ask too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import NotFoundError
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
from kbo_pipeline.read import queries as sql
from kbo_pipeline.read.changes_sql import NAME_TYPES
from kbo_pipeline.read.history import Meanings, Row, codes_in, history
from kbo_pipeline.read.state_sql import PRIMARY_NAME_LANGUAGES
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
)

_CLASSIFICATIONS = ("MAIN", "SECO", "ANCI")
_NAME_LANGUAGES = tuple(code for code, _ in PRIMARY_NAME_LANGUAGES)
_MANY_CODES = 1000
"""So many codes are quicker found by reading all of them once."""

_PARTS = tuple(table for table in TABLES if not table.unique_key)


def look_up(
    database: Database,
    extracts: Sequence[PublishedExtract],
    text: str | int,
    extract: PublishedExtract,
    language: Language,
) -> Enterprise:
    """Reads the enterprise that a number names.

    Args:
        database: a published register.
        extracts: all its published extracts.
        text: the number of an enterprise, or of one of its establishment units or branches.
        extract: the extract whose state is asked for.
        language: in which codes and places are told, where KBO knows them in it.

    Raises:
        NotFoundError: there is none; says why, and what to do.
    """
    asked = dotted(text)
    number = _enterprise_number(database, extracts, asked, extract)
    enterprise = _Reader(database, extracts, extract, language).enterprise(number)
    if enterprise is None:
        why = _why_not(database, extracts, ENTERPRISE, number, extract)
        raise NotFoundError(why if asked == number else f"{asked}: belongs to {why}")
    return enterprise


def _enterprise_number(
    database: Database,
    extracts: Sequence[PublishedExtract],
    number: str,
    extract: PublishedExtract,
) -> str:
    """The number of the enterprise that a number belongs to."""
    table = table_of(number)
    if table is ENTERPRISE:
        return number
    row = database.row(sql.owner(table), at=extract.number, number=number)
    if row is None or _hidden(database, [number]):
        raise NotFoundError(_why_not(database, extracts, table, number, extract))
    return str(row[0])


def _hidden(database: Database, numbers: Sequence[str]) -> set[str]:
    """Those of some numbers that `KBO_PRIVACY` leaves out."""
    if database.row(sql.HIDES) is None:
        return set()
    shown: set[str] = set()
    for bound in sql.pieces("number", numbers):
        rows = database.execute(sql.shown(len(bound)), **bound).fetchall()
        shown |= {number for (number,) in rows}
    return {*numbers} - shown


def _why_not(
    database: Database,
    extracts: Sequence[PublishedExtract],
    table: Table,
    number: str,
    extract: PublishedExtract,
) -> str:
    """Why a number is not to be seen at an extract."""
    times = database.execute(sql.times(table), number=number).fetchall()
    if not times:
        right = right_check_digits(number)
        if right is not None and not number.endswith(right):
            return (
                f"{number}: no such number: its last two digits would be {right}; check how it is"
                " written"
            )
        known = f"{extracts[-1].key} to {extracts[0].key}"
        return f"{number}: not in the register, in none of the extracts {known}"
    first, last = times[0][0], times[-1][1]
    if _hidden(database, [number]):
        return f"{number}: left out by KBO_PRIVACY"
    if first > extract.number:
        return f"{number}: not in the register at extract {extract.number}; it is from {first} on"
    return (
        f"{number}: not in the register at extract {extract.number}; it was from {first} to"
        f" {last - 1}; ask for one of these (--at {first})"
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one enterprise at an extract, in a language."""

    database: Database
    extracts: Sequence[PublishedExtract]
    extract: PublishedExtract
    language: Language

    def enterprise(self, number: str) -> Enterprise | None:
        """Reads an enterprise; None when there is none at the extract, or nobody may see it."""
        versions = {ENTERPRISE: self._versions(ENTERPRISE, ENTERPRISE.key, (number,))}
        held = self._held(versions[ENTERPRISE])
        if not held:
            return None
        for table in sql.UNITS:
            versions[table] = self._versions(table, ENTERPRISE.key, (number,))
        units = {row[table.key] for table in sql.UNITS for row in versions[table]}
        hidden = _hidden(self.database, [number, *sorted(units)])
        if number in hidden:
            return None
        for table in sql.UNITS:
            versions[table] = [row for row in versions[table] if row[table.key] not in hidden]
        places = [row[table.key] for table in sql.UNITS for row in self._held(versions[table])]
        for table in _PARTS:
            versions[table] = self._versions(table, table.key, (number, *places))
        meanings = self._meanings(versions)
        own = {
            table: [row for row in rows if table.unique_key or row[table.key] == number]
            for table, rows in versions.items()
        }
        dates = {extract.number: extract.snapshot_date for extract in self.extracts}
        (row,) = held
        parts = _Parts(
            {t: _by_key(t, self._held(versions[t])) for t in _PARTS}, meanings, self.language
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
                for unit in self._held(versions[ESTABLISHMENT])
            ),
            branches=tuple(
                Branch(**parts.of(unit[BRANCH.key], unit)) for unit in self._held(versions[BRANCH])
            ),
            history=history(own, self.extract.number, dates, meanings),
            extract=self.extract,
        )

    def _versions(self, table: Table, column: str, numbers: tuple[str, ...]) -> list[Row]:
        rows: list[Row] = []
        for bound in sql.pieces("number", numbers):
            result = self.database.execute(
                sql.versions(table, column, len(bound)), at=self.extract.number, **bound
            )
            names = [column[0] for column in result.description or ()]
            rows += [dict(zip(names, values, strict=True)) for values in result.fetchall()]
        return sorted(rows, key=lambda row: [str(value) for value in row.values()])

    def _meanings(self, versions: Mapping[Table, Iterable[Row]]) -> Meanings:
        codes, at = codes_in(versions), self.extract.number
        if len(codes) > _MANY_CODES:
            return Meanings(
                self.database.execute(sql.DESCRIPTIONS, at=at).fetchall(), self.language
            )
        rows = []
        for bound in sql.pieces("code", codes):
            rows += self.database.execute(sql.descriptions(len(bound)), at=at, **bound).fetchall()
        return Meanings(rows, self.language)

    def _holds(self, row: Row) -> bool:
        end = row["_deleted_at_extract"]
        return end is None or end > self.extract.number

    def _held(self, rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if self._holds(row)]


@dataclass(frozen=True, slots=True)
class _Parts:
    """Makes values of the rows that are of one number: its names, addresses, ..."""

    rows: Mapping[Table, Mapping[str, list[Row]]]
    meanings: Meanings
    language: Language

    def of(self, number: str, row: Row) -> dict[str, Any]:
        """The fields of an `Entity`, from the row of its own table and those of its parts."""

        def held(table: Table) -> list[Row]:
            return self.rows[table].get(number, [])

        names = sorted(map(self._name, held(DENOMINATION)), key=_name_order)
        return {
            "number": number,
            "start_date": row["start_date"],
            "name": next((name.text for name in names if name.text), number),
            "names": tuple(names),
            "addresses": tuple(map(self._address, sorted(held(ADDRESS), key=_address_order))),
            "contacts": tuple(map(self._contact, held(CONTACT))),
            "activities": tuple(sorted(map(self._activity, held(ACTIVITY)), key=_activity_order)),
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


def _by_key(table: Table, rows: Iterable[Row]) -> dict[str, list[Row]]:
    by_key: dict[str, list[Row]] = {}
    for row in rows:
        by_key.setdefault(row[table.key], []).append(row)
    return by_key


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
        _place(_CLASSIFICATIONS, activity.classification),
        activity.nace.code if activity.nace else "",
        activity.group.code if activity.group else "",
    )


_LABEL = r"(?:BTW|TVA|VAT|MWST|UST|KBO|BCE|ZDU|CBE|RPR|RPM|RJP|NR|NO|N°|N\.)"
_AROUND = re.compile(
    # what stands before a number on an invoice, and the court after it
    rf"(?:{_LABEL}[\s.:°\-]*)*(?P<number>\S.*?)(?:[\s,;(]+(?:RPR|RPM|RJP)\b\D*)?",
    re.IGNORECASE | re.DOTALL,
)
_BETWEEN = re.compile(r"[\s.\-/]+")
_NUMBER = re.compile(r"(BE)?([0-9]{9,10})", re.ASCII)
_DOTS = (
    (re.compile(r"([01]...)(...)(...)"), r"\1.\2.\3"),
    (re.compile(r"(.)(...)(...)(...)"), r"\1.\2.\3.\4"),
)
_LONGEST = 200
"""Characters that are looked at of a text."""


def dotted(text: str | int) -> str:
    """The number as KBO writes it, whichever of the usual ways it is written in.

    Args:
        text: with or without dots, blanks and `BE`; a zero in front may be missing; with `BTW`,
            `TVA` and the like before it, or `RPR Gent` after it, as on an invoice.

    Raises:
        NotFoundError: it is no such number.
    """
    text = str(text)
    inner = _AROUND.fullmatch(text.strip()[:_LONGEST])
    match = _NUMBER.fullmatch(_BETWEEN.sub("", inner["number"]).upper()) if inner else None
    if match is not None:
        digits = match[2].rjust(10, "0")
        for shape, dots in _DOTS:
            number = shape.sub(dots, digits)
            if any(re.fullmatch(t.columns[0].usual_number, number) for t in _NUMBERED):
                return number
    raise NotFoundError(
        f"{text[:40]!r} is no number of an enterprise, establishment unit or branch; expected one"
        " such as 0200.065.765, BE0200065765 or 2.000.000.339"
    )


def table_of(number: str) -> Table:
    """The table in which a dotted number is the key."""
    return next(table for table in _NUMBERED if number[0] in table.columns[0].number)


def right_check_digits(number: str) -> str | None:
    """The check digits that a dotted number should end with; None for branches, which have none."""
    digits = number.replace(".", "")
    return None if digits[0] == "9" else f"{97 - int(digits[:8]) % 97:02d}"


_NUMBERED = tuple(table for table in TABLES if table.unique_key)
