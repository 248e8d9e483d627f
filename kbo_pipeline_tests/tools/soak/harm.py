"""What is killed during a soak: the writer now and then, the PostgreSQL server twice."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from kbo_pipeline.operate.processes import postgres

_AWAY_SECONDS = 2.0
"""How long the server is away at least."""

_GRACE_SECONDS = 5.0
"""How long after it is back what began before may still fail."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A time without PostgreSQL, in seconds of the epoch."""

    began: float
    ended: float

    def covers(self, began: float, ended: float) -> bool:
        """Tells whether something that failed met it."""
        return began <= self.ended + _GRACE_SECONDS and ended >= self.began


class Harm:
    """Kills from a thread of its own until it is told to stop."""

    def __init__(
        self,
        server: Path,
        writer: Callable[[], int | None],
        *,
        seconds: float,
        every: float,
        chance: random.Random,
    ) -> None:
        """Begins at once.

        Args:
            server: directory of the embedded PostgreSQL.
            writer: says which process writes.
            seconds: how long the soak takes; the server is killed after a third and two thirds.
            every: seconds between two kills of the writer.
            chance: when, in the half second after it is due.
        """
        self.kills = 0
        self.outages: list[Outage] = []
        self._server, self._writer, self._every, self._chance = server, writer, every, chance
        now = time.monotonic()
        self._stops_due = [now + seconds / 3, now + seconds * 2 / 3]
        self._kill_due = now + every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        """Stops killing; the server runs then."""
        self._over.set()
        self._thread.join()

    def met(self, began: float, ended: float) -> bool:
        """Tells whether PostgreSQL was away in a time, or is now."""
        return any(outage.covers(began, ended) for outage in self.outages)

    def _run(self) -> None:
        while not self._over.wait(0.1):
            now = time.monotonic()
            if self._stops_due and now >= self._stops_due[0]:
                self._stops_due.pop(0)
                self._stop_server()
            pid = self._writer()
            if now >= self._kill_due and pid is not None:
                time.sleep(self._chance.uniform(0, 0.5))
                with suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
                    self._kill_due = now + self._every

    def _stop_server(self) -> None:
        """An immediate stop, as of a machine that loses its power; then a start."""
        pid = int((self._server / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
        began = time.time()
        self.outages.append(Outage(began, float("inf")))
        process = psutil.Process(pid)
        process.send_signal(signal.SIGQUIT)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        time.sleep(_AWAY_SECONDS)
        postgres.embedded_server_url(self._server)
        self.outages[-1] = Outage(began, time.time())
