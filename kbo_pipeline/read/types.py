"""What readers get, as typed values, and how they name extracts and numbers. No I/O.

All texts are KBO's, as they are in the data: escape them where you show them.
"""

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kbo_pipeline.core.errors import ExtractError, NotFoundError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import NUMBERED, Table

SOURCE = "Source: KBO Open Data, FPS Economy; data of "
"""The line to show with the data; the snapshot date follows."""

Language = Literal["nl", "fr", "de"]
"""Languages in which codes are explained."""


@dataclass(frozen=True, slots=True)
class PublishedExtract:
    """An extract in the published register; its data is that of the end of `snapshot_date`."""

    key: str
    number: int
    type: str
    snapshot_date: datetime.date

    @property
    def source(self) -> str:
        """The line to show with the data: where it is from, and of which day."""
        return f"{SOURCE}{self.snapshot_date}"


@dataclass(frozen=True, slots=True)
class Term:
    """A code and its meaning, in the language that was asked for, or else in another one."""

    code: str
    text: str | None

    def __str__(self) -> str:
        return self.code if self.text is None else self.text


@dataclass(frozen=True, slots=True)
class Name:
    """A name; `language` is one of KBO's, `type` is name, abbreviation, commercial name, ..."""

    text: str | None
    language: Term | None
    type: Term | None


@dataclass(frozen=True, slots=True)
class Address:
    """An address; `country` is None for Belgium, `struck_off` for an address that is valid.

    Street, municipality and country are in the language that was asked for, where KBO has it.
    """

    type: Term | None
    street: str | None
    house_number: str | None
    box: str | None
    zipcode: str | None
    municipality: str | None
    country: str | None
    extra: str | None
    struck_off: datetime.date | None

    def __str__(self) -> str:
        box = f"box {self.box}" if self.box and self.box[0].isdigit() else self.box
        house = " ".join(p for p in (self.house_number, box) if p)
        street = " ".join(p for p in (self.street, house) if p)
        place = " ".join(p for p in (self.zipcode, self.municipality) if p)
        return ", ".join(p for p in (street, self.extra, place, self.country) if p)


@dataclass(frozen=True, slots=True)
class Contact:
    """A telephone number, e-mail or web address, as it was given."""

    type: Term | None
    value: str | None


@dataclass(frozen=True, slots=True)
class Activity:
    """An activity in one version of NACE; `group` says who registered it."""

    nace_version: str | None
    nace: Term | None
    classification: Term | None
    group: Term | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """What enterprises, establishment units and branches have in common.

    Attributes:
        number: dotted.
        name: the primary name of an enterprise; of others a name chosen by the same order of
            languages, or else the number.
        names: the most official ones first.
        addresses: valid ones first, then those that were struck off last.
        activities: the newest version of NACE first, in it the main ones first.
    """

    number: str
    start_date: datetime.date | None
    name: str
    names: tuple[Name, ...]
    addresses: tuple[Address, ...]
    contacts: tuple[Contact, ...]
    activities: tuple[Activity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Establishment(Entity):
    """An establishment unit: a place where an enterprise works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch(Entity):
    """A branch in Belgium of a foreign enterprise."""


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """What an extract changed of an enterprise, in one row.

    Attributes:
        change: `changed` where a row replaced another one.
        entity_number: the enterprise, or one of its establishment units or branches.
        before: the row in words, of a changed one what differs; None for one that was added.
        after: likewise; None for one that was removed.
    """

    extract_number: int
    snapshot_date: datetime.date
    change: Literal["added", "removed", "changed"]
    table: str
    entity_number: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enterprise(Entity):
    """An enterprise with all that belongs to it, at one extract.

    Attributes:
        primary_name_language: KBO's code of the language of `name`; None when that is the number.
        situation: such as normal or bankrupt.
        type: natural or legal person.
        form: legal form; None for natural persons.
        form_cac: legal form as the companies' code of 2019 reads it; None where it is the same.
        establishments, branches: by number.
        history: the newest extract first; what came with the enterprise itself is left out.
    """

    primary_name_language: str | None
    status: Term | None
    situation: Term | None
    type: Term | None
    form: Term | None
    form_cac: Term | None
    establishments: tuple[Establishment, ...]
    branches: tuple[Branch, ...]
    history: tuple[HistoryEvent, ...]
    extract: PublishedExtract

    @property
    def vat_number(self) -> str:
        """The number in the form of VAT numbers, such as `BE0200065765`, even if it is none."""
        return f"BE{self.number.replace('.', '')}"

    @property
    def seat(self) -> Address | None:
        """The address of its seat: a valid one, or else the one that was struck off last.

        Natural persons have none in the data.
        """
        return next((a for a in self.addresses if a.type and a.type.code == "REGO"), None)

    def to_json(self) -> dict[str, Any]:
        """The enterprise as plain values; dates are `date`, so pass `default=str` to `json`."""
        return {
            **asdict(self),
            "vat_number": self.vat_number,
            "source": self.extract.source,
        }


@dataclass(frozen=True, slots=True)
class Match:
    """An enterprise that a search has found; the place is that of its seat.

    Attributes:
        name: its primary name, or its number.
        municipality: in Dutch or else in French.
        struck_off: when that address was struck off; None while it is valid.
        matched_number: the enterprise, establishment unit or branch that has what matched.
        matched_name: the name that matched; None when it was no name.
        score: how well it matches, from 0 to 1; 1 for the whole name as it is, or the number.
        matched: what matched, a name, an address or a number; None when no text was searched for.
        is_exact: whether all words of the text are in it, accents, case and order aside; False
            where something had to be forgiven.
    """

    enterprise_number: str
    name: str
    status: str | None
    zipcode: str | None
    municipality: str | None
    struck_off: datetime.date | None
    matched_number: str
    matched_name: str | None
    score: float
    matched: str | None
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of somebody who is to be found in the register, as in a list of customers.

    Attributes:
        name: as it is written there, with or without legal form.
        zipcode: the postcode of any address of theirs.
        number: of the enterprise or one of its units, in any spelling.
    """

    name: str
    zipcode: str | None = None
    number: str | None = None


@dataclass(frozen=True, slots=True)
class Matched:
    """What the register has for an entry.

    Attributes:
        candidates: the best first; each `score` also says whether the postcode agrees.
        certain: whether the first of them is right as far as anybody can tell: see docs/search.md.
        why: the reason, in words.
    """

    entry: Entry
    candidates: tuple[Match, ...]
    certain: bool
    why: str

    @property
    def best(self) -> Match | None:
        """The best candidate; None where nobody is like it."""
        return self.candidates[0] if self.candidates else None

    @property
    def runner_up(self) -> Match | None:
        """The candidate after it."""
        return self.candidates[1] if len(self.candidates) > 1 else None


@dataclass(frozen=True, slots=True)
class Change:
    """One kind of change of one entity in an extract; docs/changes.md explains the kinds.

    Attributes:
        entity_number: of the enterprise, establishment unit or branch.
        enterprise_number: of the enterprise that it is or belongs to; None when KBO knows none.
        name: its main name after the extract, or else before it; the number when it has none.
        before: the old value, as text in KBO's codes; None if there was none.
        after: the new value.
    """

    table: str
    kind: str
    entity_number: str
    enterprise_number: str | None
    name: str
    before: str | None
    after: str | None


ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class Event:
    """A change in the feed; docs/changes.md explains it.

    Attributes:
        cursor: the place of the event in the feed: a text that sorts as the events do.
        table: None for `rolled_back`.
        kind: as of a `Change`; or `rolled_back`: all events whose cursors sort behind that of this
            one are undone, from `before["extract"]` back to `after["extract"]`.
        entity_number, enterprise_number, name: as of a `Change`.
        before: the row that went, or the columns of it that the kind is about, as texts by column;
            None where a row came alone.
        after: the row that came, likewise.
    """

    cursor: str
    extract: str
    extract_number: int
    snapshot_date: datetime.date
    table: str | None
    kind: str
    entity_number: str | None
    enterprise_number: str | None
    name: str | None
    before: Mapping[str, str | None] | None
    after: Mapping[str, str | None] | None

    def to_json(self) -> dict[str, Any]:
        """The event as plain values; `snapshot_date` is a `date`: pass `default=str` to `json`."""
        return {name: getattr(self, name) for name in self.__slots__}


ExtractName = int | str | datetime.date
"""A number such as 141 or `141`, a key such as `0141-update`, or a date such as `2025-10-05`."""
_EXTRACT_NUMBER = re.compile("[0-9]{1,9}")
_DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")


def named(extracts: Sequence[PublishedExtract], name: ExtractName) -> PublishedExtract:
    """The one of the published extracts, the newest first, that a name or date stands for.

    Raises:
        ExtractError: the text is no name of an extract.
        NotFoundError: it is not published, or two are of that day; names those that are.
    """
    day = as_date(name)
    if day is not None:
        of_day = [extract for extract in extracts if extract.snapshot_date == day]
        if len(of_day) > 1:
            keys = " and ".join(extract.key for extract in reversed(of_day))
            raise NotFoundError(f"{name}: {keys} are of that day; name one of them")
        if of_day:
            return of_day[0]
        raise NotFoundError(f"{name}: no published extract is of that day; {_days(extracts)}")
    number, key = _number_or_key(name)
    extract = next((extract for extract in extracts if extract.number == number), None)
    if extract is None:
        raise NotFoundError(f"{name}: not among the published extracts; {_known(extracts)}")
    if key not in (None, extract.key):
        raise NotFoundError(f"{name}: not among the published extracts; {extract.key} is")
    return extract


def state_at(extracts: Sequence[PublishedExtract], name: ExtractName) -> PublishedExtract:
    """The published extract of a state; as `named`, but a day needs no extract of its own.

    The state at the end of a day is that of the last extract before; the day must be between those
    of the published extracts.
    """
    day = as_date(name)
    if day is None:
        return named(extracts, name)
    newest = next((extract for extract in extracts if extract.snapshot_date <= day), None)
    if newest is None or day > max(extract.snapshot_date for extract in extracts):
        raise NotFoundError(f"{name}: the state of that day is not known; {_days(extracts)}")
    return newest


def as_date(name: ExtractName) -> datetime.date | None:
    """The date that a name is; None when it is another kind of name.

    Raises:
        ExtractError: it looks like a date, but there is no such day.
    """
    if isinstance(name, datetime.datetime):
        return name.date()
    if isinstance(name, datetime.date):
        return name
    if not isinstance(name, str) or not _DATE.fullmatch(name):
        return None
    try:
        return datetime.date.fromisoformat(name)
    except ValueError:
        raise ExtractError(f"{name}: there is no such day") from None


def _number_or_key(name: int | str | datetime.date) -> tuple[int, str | None]:
    if isinstance(name, str) and not _EXTRACT_NUMBER.fullmatch(name):
        try:
            key = ExtractKey.parse(name)
        except ExtractError as error:
            raise ExtractError(f"{error}, a number such as 141, or a date") from None
        return key.number, name
    if isinstance(name, int | str):
        return int(name), None
    raise ExtractError(f"{name!r} is not an extract; expected a key such as 0141-update")


def _known(extracts: Sequence[PublishedExtract]) -> str:
    return f"{extracts[-1].key} to {extracts[0].key} are" if extracts else "nothing is yet"


def _days(extracts: Sequence[PublishedExtract]) -> str:
    if not extracts:
        return "nothing is published yet"
    days = [extract.snapshot_date for extract in extracts]
    return f"the published extracts are of {min(days)} to {max(days)}"


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
_LONGEST = 200  # characters of a text that are looked at


def dotted(text: str | int) -> str:
    """A number as KBO writes it, from any of the usual ways to write it.

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
            if any(re.fullmatch(t.columns[0].usual_number, number) for t in NUMBERED):
                return number
    raise NotFoundError(
        f"{text[:40]!r} is no number of an enterprise, establishment unit or branch; expected one"
        " such as 0200.065.765, BE0200065765 or 2.000.000.339"
    )


def table_of(number: str) -> Table:
    """The table in which a dotted number is the key."""
    return next(table for table in NUMBERED if number[0] in table.columns[0].number)


def right_check_digits(number: str) -> str | None:
    """The check digits that a dotted number should end with; None for branches, which have none."""
    digits = number.replace(".", "")
    return None if digits[0] == "9" else f"{97 - int(digits[:8]) % 97:02d}"
