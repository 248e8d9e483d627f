"""What is measured of ours: whole imports through Dagster, with PostgreSQL, as people run them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kbo_pipeline.core.extracts import key_in_file_name
from kbo_pipeline.core.places import DuckDBFile
from kbo_pipeline.read.published import published_state_of
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.processes import free_port
from kbo_pipeline_tests.tools.bench.measuring import Measurement, inode, measure

_MOST_SECONDS = 1800.0
_POLL_SECONDS = 0.05
_LOWERED = ("KBO_BATCH_ROWS", "KBO_MAX_BATCHES")


@dataclass
class Ours:
    """A data directory of its own, with the settings that everybody has."""

    directory: Path
    settings: dict[str, str]

    def __post_init__(self) -> None:
        self._pipeline = Pipeline(self.directory, self.settings)
        for name in _LOWERED:  # what tests make small
            del self._pipeline.settings[name]

    @property
    def database(self) -> Path:
        return self._pipeline.database

    @property
    def index_bytes(self) -> int:
        """Bytes of the search index."""
        directory = self.directory / "kbo.search"
        return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())

    def import_zip(self, *zip_files: Path) -> Measurement:
        """`kbo import`: from ZIPs on disk to what readers open; the last ZIP changes something."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "kbo_pipeline.cli", "import", *map(str, zip_files)]
        return measure(command, self._pipeline.environment, self.directory, self.database)

    def command(self, *arguments: str | Path) -> Measurement:
        """A command that reads what is published."""
        command = [sys.executable, "-m", "kbo_pipeline.cli", *arguments]
        return measure(command, self._pipeline.environment, self.directory)

    @contextmanager
    def beside(self, module: str, *arguments: str | Path, nice: int = 0) -> Iterator[list[str]]:
        """Runs a program beside the block, and waits for its end; yields what it has printed then.

        Raises:
            RuntimeError: it failed.
        """
        printed: list[str] = []
        process = subprocess.Popen(
            ["nice", "-n", str(nice), sys.executable, "-m", module, *map(str, arguments)],
            env=self._pipeline.environment,
            cwd=self.directory,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield printed
        finally:
            out, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{module}: ended with {process.returncode}")
        printed.append(out)

    def copy_to(self, directory: Path) -> "Ours":
        """A copy of all of it, with owners and times; nothing may be at work on it."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", self.directory, directory], check=True)
        return Ours(directory, self.settings)

    def phases(self, zip_file: Path) -> dict[str, float]:
        """Seconds of the steps that worked on the register for a ZIP, as Dagster has noted them."""
        key = key_in_file_name(zip_file.name)
        return dict(self.records("phases", str(key))["phases"])

    def records(self, what: str, *key: str) -> dict[str, Any]:
        """What `bench.records` says of this data directory, when it has done what it is told."""
        command = [sys.executable, "-m", f"{__package__}.records", what, self.directory, *key]
        done = subprocess.run(
            list(map(str, command)),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            check=True,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))

    @contextmanager
    def served(self) -> Iterator["Served"]:
        """`kbo start`, until the block ends."""
        environment = {**self._pipeline.environment, "KBO_UI_PORT": str(free_port())}
        log = self.directory / "start.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "kbo_pipeline.cli", "start"],
                env=environment,
                cwd=self.directory,
                stdout=out,
                stderr=out,
            )
        try:
            _wait(lambda: b"(Ctrl-C ends everything)" in log.read_bytes(), process)
            yield Served(self, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)


@dataclass
class Served:
    """A running `kbo start`."""

    ours: Ours
    process: subprocess.Popen[bytes]

    def drop(self, zip_file: Path) -> Measurement:
        """Puts a ZIP into the inbox; measures until readers have its extract."""
        seen = inode(self.ours.database)
        key = key_in_file_name(zip_file.name)
        peaks: dict[int, int] = {}
        shutil.copyfile(zip_file, self.ours.directory / "inbox" / zip_file.name)
        started = time.perf_counter()

        def is_published() -> bool:
            nonlocal seen
            self._note_peaks(peaks)
            if inode(self.ours.database) == seen:
                return False
            seen = inode(self.ours.database)  # or a proof was put into it
            return published_state_of(DuckDBFile(self.ours.database)).newest == key

        _wait(is_published, self.process)
        return Measurement(time.perf_counter() - started, peak=max(peaks.values()))

    def wait_until_idle(self) -> None:
        """Waits until no run is at work, so that what comes next is measured alone."""
        self.ours.records("idle")

    def _note_peaks(self, peaks: dict[int, int]) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                peaks[child.pid] = max(peaks.get(child.pid, 0), child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue


def _wait(is_so: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    while not is_so():
        if process.poll() is not None:
            raise RuntimeError("kbo start has ended")
        if time.monotonic() > deadline:
            raise RuntimeError(f"not in {_MOST_SECONDS} s")
        time.sleep(_POLL_SECONDS)
