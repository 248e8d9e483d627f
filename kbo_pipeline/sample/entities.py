"""Made-up entities: which there are, and the state of each after any extract, by arithmetic alone.

Nothing is stored. An entity is an index; whether an extract touches it, and how, comes from draws
that depend only on the seed, the index and the number of the extract. So every file can be written
in one pass, in sorted order, in constant memory, and any state can be computed again.
"""

import datetime
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import merge
from itertools import count, groupby
from operator import itemgetter

FIRST_SNAPSHOT = datetime.date(2025, 10, 4)
_FIRST_DAY = FIRST_SNAPSHOT.toordinal()
MAX_ESTABLISHMENTS = 4

_BLOCK = 1100  # slots of a thousand entities of the first Full and a hundred that start later
_LATE = 10  # the last one of each eleven starts later
_SPECIAL_ROLES = 20
_FOREIGN_ROLES = range(16, 20)  # KBO knows 4 branches for 1000 entities

_LOWEST_BODY = 2_000_000  # enterprise numbers begin with 0200.000.0
_BODIES = 8_900_000  # and end before 1090.000.0
_ESTABLISHMENT_BODIES = 9_000_000
_BRANCHES = 900_000_000

_FIRST_PLACES = 35 * ((),) + 52 * ((0,),) + 9 * ((0, 1),) + 4 * ((0, 1, 2, 3),)
"""The establishment units of 100 entities: 0.86 each, as in KBO."""

_Touch = tuple[int, str]
"""The number of the extract that touches an entity, and what it changes."""
_CHANGES = (
    *("activity", "name", "establishments", "address", "activity", "stop"),
    *("situation", "name", "nothing", "activity", "contact", "address"),
)
"""What an extract changes of one entity after another, so that a small Update has all of them."""

_MASK = (1 << 64) - 1


@dataclass(slots=True)
class State:
    """An entity after an extract.

    The parts carry the number of the extract that changed them last; 0 if none has.
    """

    alive: bool
    started: int = 0
    situation: int = 0
    name: int = 0
    address: int = 0
    contact: int = 0
    activity: int = 0
    toggled: tuple[int, ...] = (0,) * MAX_ESTABLISHMENTS
    """For each establishment unit: what opened or closed it; 0 when it is as at first."""


_FROM_THE_FIRST, _NOT_YET = State(alive=True), State(alive=False)


@dataclass(frozen=True)
class Population:
    """All entities of a sample.

    Attributes:
        seed: another seed gives another population.
        enterprises: how many are alive in the first extract.
        first_number: number of the first extract.
        change_shares: share of the entities that each extract after it touches.
        default_share: the share of the extracts beyond.
    """

    seed: int
    enterprises: int
    first_number: int
    change_shares: tuple[float, ...]
    default_share: float

    @cached_property
    def slots(self) -> int:
        """The entities that there may ever be; one of eleven starts after the first extract."""
        return self.enterprises + self.enterprises // 10

    def draw(self, purpose: str, index: int, version: int = 0) -> int:
        """A 64-bit number that looks like chance: the index-th of a sequence of wyrand."""
        x = (_sequence(self.seed, purpose, version) + index * 0xA0761D6478BD642F) & _MASK
        x *= x ^ 0xE7037ED1A0B428DB
        return (x ^ x >> 64) & _MASK

    def snapshot_date(self, number: int) -> datetime.date:
        """The day whose data an extract holds."""
        return FIRST_SNAPSHOT + datetime.timedelta(number - self.first_number)

    def role(self, index: int) -> int:
        """The place of an entity in its block: the first ones have the awkward values."""
        return index % _BLOCK

    def is_person(self, index: int) -> bool:
        """Tells a natural person; those with awkward values are legal persons."""
        return self.role(index) >= _SPECIAL_ROLES and (index * 31 + self.seed) % 97 < 39

    def is_foreign(self, index: int) -> bool:
        """Tells a foreign entity with a branch in Belgium."""
        return self.role(index) in _FOREIGN_ROLES

    def foreign_indexes(self) -> Iterator[int]:
        """The indexes of the foreign entities, in order."""
        for block in range(0, self.slots, _BLOCK):
            yield from (block + role for role in _FOREIGN_ROLES if block + role < self.slots)

    def open_places(self, index: int, state: State) -> Sequence[int]:
        """The places, of `MAX_ESTABLISHMENTS`, of the establishment units that are open."""
        first = _FIRST_PLACES[(index * 37 + self.seed) % 100]
        if not any(state.toggled):
            return first
        toggled = enumerate(state.toggled)
        return [place for place, number in toggled if (place in first) != bool(number)]

    def start_date(self, draw: int, number: int) -> datetime.date:
        """When something began: a few days around the extract that brought it, or long ago."""
        if number == 0:
            return datetime.date.fromordinal(_FIRST_DAY - draw % 20_000 - 1)
        return self.snapshot_date(number) + datetime.timedelta(1 - draw % 31)

    def enterprise_number(self, index: int) -> str:
        """The number of an enterprise; growing with the index, with right check digits."""
        step = self._enterprise_step
        body = _LOWEST_BODY + index * step + (index * 7919 + self.seed) % step
        digits = f"{body * 100 + 97 - body % 97:010d}"
        return f"{digits[:4]}.{digits[4:7]}.{digits[7:]}"

    def establishment_number(self, index: int, place: int) -> str:
        """The number of one of an enterprise's establishment units."""
        body = 20_000_000 + (index * MAX_ESTABLISHMENTS + place) * self._establishment_step
        digits = str(body * 100 + 97 - body % 97)
        return f"{digits[0]}.{digits[1:4]}.{digits[4:7]}.{digits[7:]}"

    def branch_number(self, index: int) -> str:
        """The number of the branch of a foreign entity."""
        digits = str(9_000_000_000 + (index + 1) * (_BRANCHES // (self.slots + 1)))
        return f"{digits[0]}.{digits[1:4]}.{digits[4:7]}.{digits[7:]}"

    def entities(self, indexes: Iterable[int], number: int) -> Iterator[tuple[int, State]]:
        """The entities of some indexes, in order, and what they are after an extract."""
        touches = self._touches(number)
        no_more: tuple[int, list[_Touch]] = (self.slots, [])
        touched, changes = next(touches, no_more)
        for index in indexes:
            while touched < index:
                touched, changes = next(touches, no_more)
            if touched == index:
                yield index, self._state(index, changes)
            else:
                yield index, _NOT_YET if index % 11 == _LATE else _FROM_THE_FIRST

    def touched_entities(self, number: int) -> Iterator[tuple[int, State, State]]:
        """The entities that an extract touches: index, state before, state after."""
        for index, touches in self._touches(number):
            if touches[-1][0] == number:
                yield index, self._state(index, touches[:-1]), self._state(index, touches)

    @cached_property
    def _enterprise_step(self) -> int:
        return _BODIES // self.slots

    @cached_property
    def _establishment_step(self) -> int:
        return _ESTABLISHMENT_BODIES // (self.slots * MAX_ESTABLISHMENTS)

    def _touches(self, number: int) -> Iterator[tuple[int, list[_Touch]]]:
        """Each index that any extract up to this one touches, in order, with what they do."""
        numbers = range(self.first_number + 1, number + 1)
        for index, touches in groupby(merge(*map(self._touched, numbers)), itemgetter(0)):
            yield index, [touch[1:] for touch in touches]

    def _touched(self, number: int) -> Iterator[tuple[int, int, str]]:
        """What an extract touches: index, number, what changes; takes no time for the others."""
        place = number - self.first_number - 1
        share = self.change_shares[place] if place < len(self.change_shares) else self.default_share
        if share == 0:
            return
        longest = 2 / share - 2  # beyond 1; so the mean leap is 1 / share
        reached = -1.0
        for leap in count():
            reached += 1 + longest * (self.draw("touched", leap, number) / _MASK)
            if not reached < self.slots:
                return
            yield int(reached), number, _CHANGES[(leap + number * 5) % len(_CHANGES)]

    def _state(self, index: int, touches: Iterable[_Touch]) -> State:
        """An entity that just these extracts have touched."""
        state = State(alive=index % 11 != _LATE)
        for number, change in touches:
            if not state.alive:
                state.alive = True
                state.started = number
            elif change == "stop":
                state.alive = False
            elif change == "establishments":
                place = (index + number) % MAX_ESTABLISHMENTS
                before = state.toggled
                now = 0 if before[place] else number
                state.toggled = (*before[:place], now, *before[place + 1 :])
            elif change != "nothing":
                setattr(state, change, number)
        return state


@lru_cache(1024)
def _sequence(seed: int, purpose: str, version: int) -> int:
    """Where a sequence of draws begins: the same in every process, another for each purpose."""
    text = f"{seed} {purpose} {version}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
