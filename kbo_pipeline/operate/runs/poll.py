"""The result of the last portal poll, kept in Dagster's storage."""

import json
from dataclasses import dataclass

import dagster as dg

from kbo_pipeline.core.text import counted

_STORED_AS = "kbo/poll"


@dataclass(frozen=True, slots=True)
class Poll:
    """What came of asking the portal for the last time. Times are seconds of the epoch, UTC.

    Attributes:
        asked_at: when.
        next_at: when it is to be asked again.
        not_before: when the portal allows it to be asked again; 0 when it did not say.
        decision: what was decided and why, or what went wrong, in one line.
        due: keys of the extracts that were due.
        days_left: until the next needed extract leaves the server; None when none is needed, or
            its name does not tell.
        gap: what is missing, with no Full that would bridge it; None when nothing is.
        is_failed: the portal did not answer as it must.
        is_refused: the portal refuses the account.
        since: since when it has been failing without a break; equals `asked_at` when it is not.
        failures: how often it has failed without a break.
    """

    asked_at: float
    next_at: float
    decision: str
    due: tuple[str, ...] = ()
    days_left: int | None = None
    gap: str | None = None
    is_failed: bool = False
    is_refused: bool = False
    not_before: float = 0.0
    since: float = 0.0
    failures: int = 0

    def __str__(self) -> str:
        left = "" if self.days_left is None else f"; {self.due[0]} {_leaves(self.days_left)}"
        return f"{self.decision}{left}"


def read_poll(instance: dg.DagsterInstance) -> Poll | None:
    """What came of asking the portal for the last time; None when it never was asked."""
    stored = instance.run_storage.get_cursor_values({_STORED_AS}).get(_STORED_AS)
    if stored is None:
        return None
    read = json.loads(stored)
    return Poll(**{**read, "due": tuple(read["due"])})


def _leaves(days: int) -> str:
    if days < 0:
        return "may leave the server any day"
    return f"leaves the server in {counted(days, 'day')}"
