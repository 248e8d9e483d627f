"""Imports made-up extracts one after another into a lake by workers, and into a file without."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import duckdb

from kbo_pipeline.apply.ledger import BatchChange
from kbo_pipeline.apply.pool import ApplyPool
from kbo_pipeline.apply.register import open_register
from kbo_pipeline.core.database import is_transient
from kbo_pipeline.core.errors import KboError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.places import Shared
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.tools.soak.harm import Harm


class Importer:
    """The lake's only importer; tells what it met."""

    def __init__(
        self, root: Path, settings: Settings, sample: Sample, sizes: tuple[int, int]
    ) -> None:
        """Begins with nothing imported.

        Args:
            root: where everything goes.
            settings: of the lake; say how many workers there are.
            sample: what is imported.
            sizes: rows a batch holds at least, batches at most.
        """
        batch_rows, max_batches = sizes
        self._zips, self._settings, self._sample = root / "zips", settings, sample
        self.file = Core(root / "file", batch_rows, max_batches)
        self.lake = Core(settings.data_dir, batch_rows, max_batches, shared=_shared(settings))
        self.harm: Harm | None = None
        self.pool: ApplyPool | None = None
        self.batches = self.again = 0
        self.errors: list[str] = []
        self.contents = {0: ""}
        """Hash of the content by the number of the extract, before readers can see it."""

    def pids(self) -> Sequence[int]:
        """The workers there are."""
        pool = self.pool
        # Another thread asks, while the pool may replace one.
        with suppress(RuntimeError):
            return pool.pids if pool is not None else ()
        return ()

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
        with (
            duckdb.connect(":memory:") as connection,
            open_register(connection, self._settings.register) as register,
            register.opening(self._settings.staging_dir, key) as staged,
            ApplyPool(self._settings, key, staged.batches, report=self._tell) as pool,
        ):
            self.pool = pool
            try:
                while (outcome := pool.next_outcome()) is not None:
                    if not isinstance(outcome.result, BatchChange):
                        raise outcome.result
                    self.batches += not outcome.result.already_applied
            finally:
                self.pool = None

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


def _shared(settings: Settings) -> Shared:
    assert not isinstance(settings.database, Path)
    return settings.database
