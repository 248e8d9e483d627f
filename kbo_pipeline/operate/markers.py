"""What processes leave for each other: paused, suspect, lost extracts, the last poll, alerts."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbo_pipeline.core.extracts import ExtractKey, key_or_none
from kbo_pipeline.core.files import make_private, replace_atomically
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import counted

if TYPE_CHECKING:
    from dagster import DagsterInstance

PAUSED = "paused; kbo resume continues"
"""Why everything waits while `kbo pause` holds."""

_POLL, _ALERTS = "kbo/poll", "kbo/standing_alerts"  # the keys in Dagster's storage


def is_paused(settings: Settings) -> bool:
    """Tells whether `kbo pause` holds."""
    return _pause_file(settings).exists()


def pause(settings: Settings) -> bool:
    """Keeps anything new from beginning; False when that holds already."""
    file = _pause_file(settings)
    make_private(file.parent)
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def resume(settings: Settings) -> bool:
    """Lets everything continue; False when nothing is paused."""
    try:
        _pause_file(settings).unlink()
    except FileNotFoundError:
        return False
    return True


def _pause_file(settings: Settings) -> Path:
    return settings.work_dir / "paused"


def suspect_file(settings: Settings) -> Path:
    """A file that is there after a process has come upon damage, until `kbo start` has looked."""
    return settings.work_dir / "suspect"


def mark_suspect(settings: Settings) -> None:
    """Notes that something is damaged: `kbo start` looks into it within a minute."""
    suspect_file(settings).touch()


def read_lost(settings: Settings) -> list[ExtractKey]:
    """The extracts to be imported again, or to an end, after a repair."""
    file = settings.work_dir / "lost"
    if not file.exists():
        return []
    keys = (key_or_none(line) for line in file.read_text().splitlines())
    return sorted({key for key in keys if key is not None})


def add_lost(settings: Settings, keys: Iterable[ExtractKey]) -> None:
    """Notes extracts that are to be imported again, or to an end."""
    _write_lost(settings, {*read_lost(settings), *keys})


def drop_lost(settings: Settings, key: ExtractKey) -> None:
    """Notes that an extract is no longer lost."""
    _write_lost(settings, set(read_lost(settings)) - {key})


def _write_lost(settings: Settings, keys: set[ExtractKey]) -> None:
    file = settings.work_dir / "lost"
    if not keys:
        file.unlink(missing_ok=True)
        return
    with replace_atomically(file) as unfinished:
        unfinished.write_text("".join(f"{key}\n" for key in keys))


@dataclass(frozen=True, slots=True)
class Poll:
    """The result of the last portal poll. Times are seconds of the epoch.

    Attributes:
        asked_at: when the portal was asked.
        next_at: when it is to be asked again.
        not_before: when the portal allows the next poll; 0 when it did not say.
        decision: what was decided and why, or what went wrong, in one line.
        due: keys of the extracts that were due.
        days_left: until the next needed extract leaves the server; None when none is needed, or
            its name does not tell.
        gap: what is missing, with no Full that would bridge it; None when nothing is.
        is_failed: the portal did not answer as it must.
        is_refused: the portal refuses the account.
        since: when the present series of failures began; `asked_at` when there is none.
        failures: how many failures that series has.
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


def read_poll(instance: "DagsterInstance") -> Poll | None:
    """The result of the last portal poll; None when the portal was never asked."""
    stored = instance.run_storage.get_cursor_values({_POLL}).get(_POLL)
    if stored is None:
        return None
    read = json.loads(stored)
    return Poll(**{**read, "due": tuple(read["due"])})


def write_poll(instance: "DagsterInstance", poll: Poll) -> None:
    """Keeps the result of a poll, in place of the one before."""
    instance.run_storage.set_cursor_values({_POLL: json.dumps(asdict(poll))})


def _leaves(days: int) -> str:
    if days < 0:
        return "may leave the server any day"
    return f"leaves the server in {counted(days, 'day')}"


def store_alerts(instance: "DagsterInstance", alerts: Sequence[dict[str, Any]]) -> None:
    """Notes which alerts stand; nothing is written while these are the same.

    Args:
        instance: where.
        alerts: as the webhook gets them.
    """
    text = json.dumps(alerts)
    if instance.run_storage.get_cursor_values({_ALERTS}).get(_ALERTS, "[]") != text:
        instance.run_storage.set_cursor_values({_ALERTS: text})


def read_alerts(instance: "DagsterInstance") -> list[dict[str, Any]]:
    """The alerts that stood when the sensor looked last."""
    stored = instance.run_storage.get_cursor_values({_ALERTS}).get(_ALERTS, "[]")
    return list(json.loads(stored))
