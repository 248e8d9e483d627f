"""Which processes live but do not answer: stopped, or in a deadlock. No Dagster.

Who is merely busy still answers, if late: each is asked what costs it nothing, and again for a
minute before it counts as silent.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SILENT_SECONDS = 60.0
"""So long a process may give no answer."""

_BEGINNING_SECONDS = 180.0  # until it has answered for the first time
_LEAST_ASKED = 4  # we may have been stopped ourselves, between two of them
_ASK_SECONDS = 10.0
_BEAT_SECONDS = 5.0


@dataclass
class _Silence:
    since: float
    asked: int = 0


class Pulse:
    """Asks processes by their names, each in its own way."""

    def __init__(self, asks: Mapping[str, Callable[[], bool]]) -> None:
        """Asks nobody yet.

        Args:
            asks: what tells whether a process answers now, within seconds.
        """
        self._asks = asks
        self._silences: dict[str, _Silence] = {}
        self._answered: set[str] = set()
        self._due = 0.0

    def begin(self, name: str) -> None:
        """A process has been started, and may take its time until it answers."""
        self._answered.discard(name)
        self._silences.pop(name, None)

    def silent(self, names: list[str]) -> list[str]:
        """Asks these processes, each few seconds; returns those that are silent for too long."""
        if time.monotonic() < self._due:
            return []
        found = []
        for name in names:
            if name not in self._asks:
                continue
            if self._asks[name]():
                self._answered.add(name)
                self._silences.pop(name, None)
                continue
            now = time.monotonic()
            silence = self._silences.setdefault(name, _Silence(now))
            silence.asked += 1
            limit = SILENT_SECONDS if name in self._answered else _BEGINNING_SECONDS
            if silence.asked >= _LEAST_ASKED and now - silence.since >= limit:
                found.append(name)
        self._due = time.monotonic() + _ASK_SECONDS
        return found


def beat(file: Path) -> None:
    """Touches a file again and again, from a thread, as long as this process runs."""

    def go_on() -> None:
        while True:
            with suppress(OSError):  # its directory is made again
                file.touch()
            time.sleep(_BEAT_SECONDS)

    threading.Thread(target=go_on, daemon=True).start()


class Beat:
    """Tells whether a file is touched again and again."""

    def __init__(self, file: Path) -> None:
        """Has not looked yet."""
        self._file = file
        self._seen: int | None = None
        self._changed_at = 0.0

    def __call__(self) -> bool:
        """Whether it was touched since the last looks; by our clock, as the wall's may jump."""
        try:
            touched = self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if touched != self._seen:
            self._seen, self._changed_at = touched, time.monotonic()
        return time.monotonic() - self._changed_at < 3 * _BEAT_SECONDS
