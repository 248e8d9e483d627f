"""Made-up entities: what each of them is after any extract, by arithmetic alone.

Nothing is stored. An entity is an index; whether an extract touches it, and how, comes from a hash
of seed, index and extract number. So every file can be written in one pass, in sorted order, in
constant memory, and the true state after any extract can be computed again.
"""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from kbo_pipeline.sample.codes import (
    JURIDICAL_FORMS,
    JURIDICAL_SITUATIONS,
    NACE_VERSIONS,
    nace_codes,
)
from kbo_pipeline.sample.words import (
    AWKWARD_ADDRESSES,
    AWKWARD_CONTACTS,
    AWKWARD_NAMES,
    FIRST_NAMES,
    PLACES,
    STREETS,
    SURNAMES,
    TRADES,
)

_Choice = TypeVar("_Choice")

Value = str | datetime.date | None
Values = tuple[Value, ...]

FIRST_SNAPSHOT = datetime.date(2025, 10, 4)
MAX_ESTABLISHMENTS = 4

_MASK = (1 << 64) - 1
_LOWEST_BODY = 2_000_000  # enterprise numbers begin with 0200.000.0
_BODIES = 8_900_000  # and end before 1090.000.0
_BUNDLES = 4096

_SALT_PERSON, _SALT_ACTION, _SALT_NAME, _SALT_ADDRESS, _SALT_CONTACT, _SALT_ACTIVITY = range(1, 7)
_SALT_ESTABLISHMENTS, _SALT_BUNDLE = 7, 8


def mix(a: int, b: int, c: int) -> int:
    """A 64-bit hash of three numbers, the same in every process and version of Python."""
    x = (a * 0x9E3779B97F4A7C15 + b * 0xBF58476D1CE4E5B9 + c * 0x94D049BB133111EB) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@dataclass(slots=True)
class State:
    """What an entity is after an extract; each part carries the number that changed it last."""

    alive: bool
    establishments: int  # a bit for each one that is open
    name: int = 0
    address: int = 0
    contact: int = 0
    activity: int = 0
    situation: int = 0


@dataclass(frozen=True, slots=True)
class Population:
    """All entities of a sample.

    Attributes:
        seed: another seed gives another population.
        slots: entities there may ever be; one of eleven starts later than the first extract.
    """

    seed: int
    slots: int

    def touched(self, index: int, number: int, share: float) -> bool:
        """Tells whether an extract touches an entity."""
        return mix(self.seed + number, index, _SALT_ACTION) < share * _MASK

    def first_state(self, index: int) -> State:
        """What an entity is in the first extract."""
        return State(index % 11 != 5 or _is_special(index), self._first_establishments(index))

    def touch(self, state: State, index: int, number: int) -> None:
        """Changes a state as an extract that touches the entity does; sometimes not at all."""
        action = mix(self.seed, index, number) % 100
        if not state.alive:
            state.alive = True
        elif action < 28:
            state.activity = number
        elif action < 44:
            state.name = number
        elif action < 58:
            state.address = number
        elif action < 68:
            state.contact = number
        elif action < 76:
            state.situation = number
        elif action < 86:
            state.establishments ^= 1 << (action % MAX_ESTABLISHMENTS)
        elif action < 92:
            state.alive = False

    def _first_establishments(self, index: int) -> int:
        draw = mix(self.seed, index, _SALT_ESTABLISHMENTS) % 100
        return 0 if draw < 35 else 1 if draw < 87 else 3 if draw < 96 else 15

    def enterprise_number(self, index: int) -> str:
        """The number of an enterprise; growing with the index, with right check digits."""
        step = _BODIES // self.slots
        return _with_check_digits(_LOWEST_BODY + index * step + mix(self.seed, index, 0) % step)

    def establishment_number(self, index: int, place: int) -> str:
        """The number of one of an enterprise's establishment units."""
        step = 9_000_000 // (self.slots * MAX_ESTABLISHMENTS)
        number = _with_check_digits(20_000_000 + (index * MAX_ESTABLISHMENTS + place) * step)
        return f"{number[0]}.{number[1:4]}{number[4:]}"

    def branch_number(self, index: int) -> str:
        """The number of the branch of a foreign entity."""
        digits = str(9_000_000_000 + (index + 1) * (900_000_000 // (self.slots + 1)))
        return f"{digits[0]}.{digits[1:4]}.{digits[4:7]}.{digits[7:]}"

    def is_person(self, index: int) -> bool:
        """Tells a natural person; the first of each thousand are legal persons."""
        return not _is_special(index) and mix(self.seed, index, _SALT_PERSON) % 100 < 40

    def is_foreign(self, index: int) -> bool:
        """Tells a foreign entity with a branch in Belgium."""
        return index % 1000 in (1, 8, 15) or mix(self.seed, index, _SALT_PERSON) % 997 == 0

    def enterprise_rows(self, index: int, state: State) -> list[Values]:
        """The one row of `enterprise`."""
        draw = mix(self.seed, index, _SALT_PERSON)
        person = self.is_person(index)
        situation = JURIDICAL_SITUATIONS[state.situation % len(JURIDICAL_SITUATIONS)]
        form = None if person else JURIDICAL_FORMS[draw % len(JURIDICAL_FORMS)]
        new_form = "616" if form == "706" else None
        return [("AC", situation, "1" if person else "2", form, new_form, _start(index, draw))]

    def names(self, index: int, state: State) -> list[Values]:
        """The rows of `denomination` of an enterprise."""
        draw = mix(self.seed + state.name, index, _SALT_NAME)
        if self.is_person(index):
            return [("0", "001", f"{_pick(SURNAMES, draw)}, {_pick(FIRST_NAMES, draw >> 8)}")]
        place = index % 1000
        language = "12"[draw % 2]
        name = f"{_pick(TRADES, draw >> 4)} {_pick(SURNAMES, draw >> 12)} {draw % 997}"
        if state.name == 0 and place < len(AWKWARD_NAMES):
            return [(language, "001", AWKWARD_NAMES[place]), ("2", "002", "AFK")]
        if place in (8, 9, 10, 11):
            return [("0134"[place - 8], "001", name)]
        if place == 12:
            return []
        if place == 13:
            return [("2", "001", name), ("2", "001", f"A{name}"), ("1", "001", f"{name} SRL")]
        rows: list[Values] = [(language, "001", name)]
        if draw % 10 < 4:
            rows.append(("21"[draw % 2], "001", f"{name} {'bv' if draw % 3 else 'srl'}"))
        if draw % 10 > 6:
            rows.append((language, "003", f"{_pick(TRADES, draw >> 20)} {draw % 89}"))
        return rows

    def establishment_names(self, index: int, state: State, place: int) -> list[Values]:
        """The rows of `denomination` of an establishment unit."""
        draw = mix(self.seed + state.name, index * MAX_ESTABLISHMENTS + place, _SALT_NAME)
        return [("2", "003", f"{_pick(TRADES, draw)} {draw % 977}")] if draw % 100 < 40 else []

    def addresses(self, index: int, state: State, kind: str, place: int = 0) -> list[Values]:
        """The one row of `address` of a seat, an establishment unit or a branch."""
        if kind == "REGO" and self.is_person(index):
            return []
        draw = mix(self.seed + state.address, index * MAX_ESTABLISHMENTS + place, _SALT_ADDRESS)
        special = index % 1000 - 14
        where: Values
        if kind == "REGO" and state.address == 0 and 0 <= special < len(AWKWARD_ADDRESSES):
            where = AWKWARD_ADDRESSES[special]
        else:
            where = (None, None, *_pick(PLACES, draw), *_pick(STREETS, draw >> 8))
        box = f"bus {draw % 40}" if draw % 7 == 0 else None
        extra = "1ste verdieping, links" if draw % 211 == 0 else None
        struck_off = FIRST_SNAPSHOT - datetime.timedelta(draw % 999) if draw % 307 == 0 else None
        return [(kind, *where, str(draw % 340 + 1), box, extra, struck_off)]

    def contacts(self, index: int, state: State, kind: str) -> list[Values]:
        """The rows of `contact` of an enterprise or establishment unit."""
        special = index % 1000 - 18
        if kind == "ENT" and state.contact == 0 and 0 <= special < len(AWKWARD_CONTACTS):
            return [(kind, *AWKWARD_CONTACTS[special])]
        draw = mix(self.seed + state.contact, index, _SALT_CONTACT + (kind == "EST"))
        if draw % 100 >= (26 if kind == "ENT" else 5):
            return []
        rows: list[Values] = [
            (kind, "TEL", f"0{draw % 9 + 1} 555 {draw % 90 + 10} {draw % 80 + 11}")
        ]
        if draw % 3 == 0:
            rows.append((kind, "EMAIL", f"info{draw % 9973}@voorbeeld.example"))
        return rows

    def activities(self, index: int, state: State, place: int) -> tuple[Values, ...]:
        """The rows of `activity` of an enterprise (place -1) or establishment unit."""
        draw = mix(self.seed + state.activity, index * 8 + place, _SALT_ACTIVITY)
        return activity_bundle(draw % _BUNDLES)


@lru_cache(_BUNDLES)
def activity_bundle(which: int) -> tuple[Values, ...]:
    """One of the sets of activities that entities have; always with several MAIN ones."""
    draw = mix(which, 0, _SALT_BUNDLE)
    rows: dict[Values, None] = {}
    for position in range(2 + draw % 17):
        pick = mix(which, position, _SALT_BUNDLE)
        version = NACE_VERSIONS[position % 3]
        code = _pick(nace_codes(version), pick)
        kind = "MAIN" if position < 3 else _pick(("SECO", "SECO", "MAIN", "ANCI"), pick >> 20)
        rows[_pick(("001", "003", "006"), pick >> 40), version, code, kind] = None
    return tuple(rows)


def start_date(index: int, place: int) -> datetime.date:
    """When an establishment unit or branch began."""
    return FIRST_SNAPSHOT - datetime.timedelta(mix(index, place, 0) % 15_000 + 1)


def _is_special(index: int) -> bool:
    """Tells the entities, the first of each thousand, that carry the awkward values."""
    return index % 1000 < 24


def _start(index: int, draw: int) -> datetime.date:
    if index % 1000 == 20:
        return datetime.date(1804, 3, 21)
    if index % 1000 == 21:
        return FIRST_SNAPSHOT + datetime.timedelta(1)
    return FIRST_SNAPSHOT - datetime.timedelta((draw >> 16) % 20_000 + 1)


def _with_check_digits(body: int) -> str:
    digits = f"{body:08d}{97 - body % 97:02d}"
    return f"{digits[:4]}.{digits[4:7]}.{digits[7:]}"


def _pick(choices: tuple[_Choice, ...], draw: int) -> _Choice:
    return choices[draw % len(choices)]


def open_places(state: State) -> Iterator[int]:
    """The places of the establishment units that are open."""
    return (place for place in range(MAX_ESTABLISHMENTS) if state.establishments >> place & 1)
