"""A whole stack to do harm to: `kbo start` with everything below it, and `kbo` commands beside it.

It is looked at from outside only, through PostgreSQL and the file system: a Dagster instance of
ours would keep the embedded server alive, and start it again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from kbo_pipeline.operate.runs.claims import WRITER_POOL
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.processes import free_port

FORKING = "multiprocessing.forkserver"
"""Stands in the command line of the process that run workers are forked from, and in theirs."""

_END_SECONDS = 90.0
_LINES_TOLD = 30  # of a command that says too much
_SIGNS = ("STEP_START", "ASSET_MATERIALIZATION", "PIPELINE_START")
_OPEN = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")


@dataclass
class Stack:
    """`kbo start` on a data directory, which may die and be started again.

    Attributes:
        pipeline: the data directory and the settings.
        events: what Dagster has recorded.
    """

    pipeline: Pipeline
    events: "Events"
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Runs `kbo start`; does not wait until it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kbo_pipeline.cli", "start"],
                env=self.pipeline.environment,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        """What `kbo start` has said, all of them one after the other."""
        return self.pipeline.directory / "start.log"

    def last_line(self) -> str:
        """What it has said last."""
        return (self.log.read_text(errors="replace").strip().splitlines() or [""])[-1]

    @property
    def main(self) -> psutil.Process:
        """`kbo start` itself."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def ended(self) -> int | None:
        """The exit code of `kbo start`; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def all(self) -> list[psutil.Process]:
        """It and everything below it; PostgreSQL is not below it."""
        return [self.main, *self.below()]

    def below(self) -> list[psutil.Process]:
        """Everything below it."""
        with suppress(psutil.Error):
            return self.main.children(recursive=True)
        return []

    def named(self, *words: str) -> list[psutil.Process]:
        """The processes below it that have one of these words in their command lines."""
        found = []
        for process in self.below():
            with suppress(psutil.Error):
                if any(word in part for part in process.cmdline() for word in words):
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes of runs: forked from one with the same command line."""
        found = self.named(FORKING)
        servers = {process.pid for process in found}
        workers = []
        for process in found:
            with suppress(psutil.Error):
                if process.ppid() in servers:
                    workers.append(process)
        return workers

    def wait(self) -> int:
        """Waits until `kbo start` has ended; returns its exit code."""
        assert self._process is not None
        return self._process.wait(_END_SECONDS)

    def stop(self) -> None:
        """Ends `kbo start` in good order, and whatever is left of it."""
        if self.ended() is None:
            left = self.below()
            self.main.send_signal(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.main.kill()
                self.wait()
            for process in left:
                with suppress(psutil.Error):
                    process.kill()


@dataclass
class Events:
    """What Dagster has recorded, read straight from its tables; nothing while PostgreSQL is away.

    Attributes:
        url: of the server; None for the embedded one of a data directory.
        directory: the data directory.
    """

    url: str | None
    directory: Path
    _connection: "psycopg2.extensions.connection | None" = None

    def newest(self) -> int | None:
        """The id of the newest sign of work: a run or a step has begun, a batch is applied."""
        rows = self._rows(
            "SELECT max(id) FROM event_logs WHERE dagster_event_type IN %s", (_SIGNS,)
        )
        return int(rows[0][0] or 0) if rows else None

    def open_runs(self, extract: str | None = None) -> list[str]:
        """The runs that are not ended, of one extract or of all."""
        rows = self._rows(
            "SELECT r.run_id, r.pipeline_name, r.status FROM runs r WHERE r.status IN %s"
            " AND (%s IS NULL OR EXISTS (SELECT FROM run_tags t WHERE t.run_id = r.run_id"
            " AND t.key = 'kbo/extract' AND t.value = %s))",
            (_OPEN, extract, extract),
        )
        return [f"run {run} of {job} is {status}" for run, job, status in rows or []]

    def runs_of(self, extract: str) -> int:
        """How many runs of an extract there were."""
        rows = self._rows(
            "SELECT count(*) FROM run_tags WHERE key = 'kbo/extract' AND value = %s", (extract,)
        )
        return int(rows[0][0]) if rows else 0

    def has_begun(self, step: str, extract: str, moment: float) -> bool:
        """Whether a step of an extract has begun after a moment, in seconds of the epoch."""
        rows = self._rows(
            "SELECT count(*) FROM event_logs WHERE dagster_event_type = 'STEP_START'"
            " AND step_key = %s AND timestamp > to_timestamp(%s) AT TIME ZONE 'UTC'"
            " AND run_id IN (SELECT run_id FROM run_tags"
            " WHERE key = 'kbo/extract' AND value = %s)",
            (step, moment, extract),
        )
        return rows is None or bool(rows[0][0])

    def started_run(self) -> str | None:
        """The id of a run of the daemon that is at work."""
        rows = self._rows("SELECT run_id FROM runs WHERE status = 'STARTED'", ())
        return str(rows[0][0]) if rows else None

    def restless(self) -> list[str]:
        """Runs that are not ended and slots that are taken or waited for; empty when all rest."""
        found = self.open_runs()
        for table in ("concurrency_slots", "pending_steps"):
            rows = self._rows(
                f"SELECT run_id FROM {table} WHERE run_id IS NOT NULL AND concurrency_key = %s",
                (WRITER_POOL,),
            )
            if rows is None:
                return ["PostgreSQL does not answer"]
            found += [f"{table}: run {run} still has the writer's" for (run,) in rows]
        return found

    def unrecorded(self, extract: str) -> int:
        """How many pairs of a batch of the extract and a table Dagster does not know as applied."""
        rows = self._rows(
            "SELECT (SELECT 7 * count(*) FROM dynamic_partitions WHERE partition LIKE %s"
            " AND partitions_def_name = 'kbo_batches') - (SELECT count(DISTINCT (asset_key,"
            " partition)) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
            " AND partition LIKE %s)",
            (f"{extract}-%", f"{extract}-%"),
        )
        return int(rows[0][0]) if rows else 0

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[Any] | None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg2.connect(self.url or self._embedded(), connect_timeout=5)
                self._connection.autocommit = True
            with self._connection.cursor() as cursor:
                cursor.execute(query, values)
                return list(cursor.fetchall())
        except (psycopg2.Error, OSError, IndexError):
            self.close()
            return None

    def close(self) -> None:
        """Lets go of the server."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _embedded(self) -> str:
        """As the server itself says: a long path has its socket elsewhere."""
        lines = (self.directory / "postgres" / "data" / "postmaster.pid").read_text().splitlines()
        return f"host={lines[4]} port={lines[3]} user=postgres dbname=postgres"


@dataclass
class Command:
    """A `kbo` command in a process of its own.

    Attributes:
        arguments: what follows `kbo`.
    """

    arguments: tuple[str, ...]
    process: subprocess.Popen[str] = field(repr=False)

    def end(self, patience: float = 240.0) -> "Ended":
        """Waits until it has ended, and no longer than its patience."""
        try:
            out, errors = self.process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            return Ended(self.arguments, None, "", "")
        return Ended(self.arguments, self.process.returncode, out, errors)


@dataclass(frozen=True)
class Ended:
    """A `kbo` command that has ended.

    Attributes:
        arguments: what follows `kbo`.
        code: its exit code; None when it hung.
        out: what it said.
        errors: what it complained about.
    """

    arguments: tuple[str, ...]
    code: int | None
    out: str
    errors: str

    @property
    def is_done(self) -> bool:
        """Whether it did what it was told."""
        return self.code == 0

    @property
    def refusal(self) -> str:
        """Why it did not, in its own words, without the name of the extract."""
        lines = self.errors.strip().splitlines() or [""]
        return lines[-1].removeprefix("kbo: ")

    def problems(self) -> list[str]:
        """What no command may do: hang, end with more than a line, or with a code of its own."""
        name = f"kbo {' '.join(Path(word).name for word in self.arguments)}"
        if self.code is None:
            return [f"{name} hangs"]
        lines = [line for line in self.errors.splitlines() if not line.startswith("kbo: paused")]
        is_stopped = self.code == 130 and self.refusal.startswith("stopped; ")  # by kbo cancel
        if (self.code not in (0, 1) and not is_stopped) or "Traceback" in self.errors:
            return [f"{name} ended with {self.code}: {json.dumps(lines[-_LINES_TOLD:])}"]
        if self.code in (1, 130) and (len(lines) != 1 or not lines[0].startswith("kbo: ")):
            return [f"{name} does not refuse in one line: {json.dumps(lines[:4])}"]
        if "still at work" in self.errors:
            return [f"{name}: {self.refusal}"]
        return []


def begun(pipeline: Pipeline, *arguments: str | Path) -> Command:
    """Runs a `kbo` command beside the stack."""
    words = tuple(map(str, arguments))
    process = subprocess.Popen(
        [sys.executable, "-m", "kbo_pipeline.cli", *words],
        env=pipeline.environment,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Command(words, process)


def embedded_postmaster(directory: Path) -> psutil.Process | None:
    """The embedded PostgreSQL of a data directory, while it runs."""
    try:
        lines = (directory / "postgres" / "data" / "postmaster.pid").read_text().splitlines()
        process = psutil.Process(int(lines[0]))
        is_ours = str(directory) in " ".join(process.cmdline())
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None


def killed(processes: list[psutil.Process]) -> None:
    """Kills all of them, and waits until they are gone."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


@contextmanager
def running(pipeline: Pipeline, url: str | None = None) -> Iterator[Stack]:
    """A stack on a free port; whatever runs of it at the end is ended, the embedded server too."""
    pipeline.settings["KBO_UI_PORT"] = str(free_port())
    stack = Stack(pipeline, Events(url, pipeline.directory))
    stack.start()
    try:
        yield stack
    finally:
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who ends us must not disturb this
        stack.events.close()
        stack.stop()
        deadline = time.monotonic() + _END_SECONDS
        while (left := embedded_postmaster(pipeline.directory)) and time.monotonic() < deadline:
            with suppress(psutil.Error):
                os.kill(left.pid, signal.SIGINT)  # the last user of a killed stack stops nothing
            time.sleep(0.2)
        signal.signal(signal.SIGTERM, before)
