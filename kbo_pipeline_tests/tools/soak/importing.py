"""Imports made-up extracts into a lake by a writer that is killed, and into a file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

from kbo_pipeline.core.database import is_transient
from kbo_pipeline.core.errors import KboError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.places import Lake
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.tools.soak.harm import Harm
from kbo_pipeline_tests.tools.soak.writer import AGAIN


class Importer:
    """The lake's only importer; tells what it met."""

    def __init__(
        self, root: Path, settings: Settings, sample: Sample, sizes: tuple[int, int]
    ) -> None:
        """Begins with nothing imported.

        Args:
            root: where everything goes.
            settings: of the lake.
            sample: what is imported.
            sizes: rows a batch holds at least, batches at most.
        """
        batch_rows, max_batches = sizes
        self._zips, self._settings, self._sample = root / "zips", settings, sample
        self.file = Core(root / "file", batch_rows, max_batches)
        self.lake = Core(settings.data_dir, batch_rows, max_batches, shared=_shared(settings))
        self.harm: Harm | None = None
        self._process: subprocess.Popen[str] | None = None
        self.batches = self.again = 0
        self.errors: list[str] = []
        self.contents = {0: ""}
        """Hash of the content by the number of the extract, before readers can see it."""

    def writer(self) -> int | None:
        """The process that applies batches, while one does."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def import_next(self) -> None:
        """Imports the next extract of the sample."""
        number = self._sample.first_number + len(self.contents) - 1
        is_first = number == self._sample.first_number
        write = self._sample.write_full if is_first else self._sample.write_update
        zip_file = write(self._zips, number)
        self.file.import_zip(zip_file)
        self.contents[number] = self.file.content_hash()
        key = self.lake.stage(zip_file).extract.key
        self._until_done(f"{key}: apply", lambda: self._apply(key))
        self._until_done(f"{key}: publish", lambda: self.lake.publish(key))

    def _apply(self, key: ExtractKey) -> None:
        """Applies all batches in a process of its own, and again where that is killed."""
        while True:
            with subprocess.Popen(
                [sys.executable, "-m", "kbo_pipeline_tests.tools.soak.writer", str(key)],
                env={**os.environ, **self._settings.environment},
                stdout=subprocess.PIPE,
                text=True,
            ) as self._process:
                said = self._process.communicate()[0].splitlines()
            self.batches += said.count("applied")
            if self._process.returncode == 0:
                return
            if self._process.returncode != -signal.SIGKILL:
                raise (StorageError if self._process.returncode == AGAIN else KboError)(said[-1])
            self._tell(f"{key}: the writer was killed")

    def _tell(self, line: str) -> None:
        self.again += 1
        print(line, flush=True)

    def _until_done(self, what: str, work: Callable[[], object]) -> None:
        """Calls it again while PostgreSQL is away, or when the error may pass; others end it."""
        while True:
            began = time.time()
            try:
                work()
                return
            except (KboError, duckdb.Error) as error:
                said = f"{what}: {type(error).__name__}: {error}".split("\n", 1)[0]
                is_met = self.harm is not None and self.harm.met(began, time.time())
                if not (is_met or is_transient(error)):
                    self.errors.append(said)
                    raise
                self._tell(said)
                time.sleep(1.0)


def _shared(settings: Settings) -> Lake:
    assert isinstance(settings.database, Lake)
    return settings.database
