"""Rows of the plan, and what came of them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from kbo_pipeline_tests.tools.chaos.world import World

Step = Callable[..., None]
"""Called once a repetition, with a line about it or without."""


class Perform(Protocol):
    """Does a row: makes the fault happen as often as the row says, and checks after each time."""

    def __call__(self, world: World, row: "Row", chance: random.Random, step: Step) -> "Outcome":
        """Returns what came of it; whatever is drawn is drawn from `chance`."""


@dataclass(frozen=True)
class Row:
    """A row of the plan.

    Attributes:
        name: which fault; its seed depends on it, so that `--only` replays a row as among all.
        times: how often.
        run: does it.
        has_stack: harms a whole stack, and needs of the world the directory only.
    """

    name: str
    times: int
    run: Perform
    has_stack: bool = False


@dataclass
class Outcome:
    """What came of a row.

    Attributes:
        name: of the row.
        times: how often the fault was to happen.
        hits: how often it did.
        imports: extracts, or whole registers, that were brought to their end meanwhile.
        went_on: the longest time in seconds from the end of a fault (the restart, where there was
            one) to the next step, batch or run at work; None where that is not measured.
        published: the longest time in seconds from a fault to the publication of its extract.
        problems: every broken promise.
        notes: what else was seen, and how often.
    """

    name: str
    times: int
    hits: int = 0
    imports: int = 0
    went_on: float | None = None
    published: float | None = None
    problems: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """One line for the terminal."""
        bad = "; ".join(self.problems) or "nothing lost, doubled, stuck, left behind or misread"
        return f"{self.name}: {self.hits} of {self.times}, {self.imports} imports: {bad}"

    def cells(self) -> list[str]:
        """Its line in a table, below `HEADINGS`."""
        seconds = ["" if s is None else f"{s:.0f}" for s in (self.went_on, self.published)]
        bad = "; ".join(self.problems) or "0"
        return [self.name, str(self.times), str(self.hits), str(self.imports), *seconds, bad]

    def note(self, text: str) -> None:
        """Counts something that was seen."""
        self.notes[text] = self.notes.get(text, 0) + 1

    def took(self, went_on: float | None, published: float | None) -> None:
        """Keeps the longest times."""
        self.went_on = _longer(self.went_on, went_on)
        self.published = _longer(self.published, published)


HEADINGS = (
    "fault",
    "times",
    "hit",
    "imports",
    "went on, s",
    "published, s",
    "lost, doubled, stuck, left behind, misread",
)


@dataclass(frozen=True)
class Record:
    """An outcome, and where and when it came about: a line of the file of results.

    Attributes:
        outcome: the outcome.
        seed: of the whole run.
        commit: of the repository, with `+` behind it when files had changed since.
        date: of its end, UTC.
        seconds: how long the row took.
    """

    outcome: Outcome
    seed: int
    commit: str
    date: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The line, to be serialized."""
        rest = {name: getattr(self, name) for name in ("seed", "commit", "date", "seconds")}
        return {**vars(self.outcome), **rest}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Record":
        """What `to_json` made of one."""
        rest = {name: line.pop(name) for name in ("seed", "commit", "date", "seconds")}
        return cls(Outcome(**line), **rest)

    def is_complete(self, row: Row) -> bool:
        """Whether it says that a row has been done in full and nothing was wrong."""
        return self.outcome.hits >= row.times and not self.outcome.problems


def _longer(one: float | None, other: float | None) -> float | None:
    return max((s for s in (one, other) if s is not None), default=None)
