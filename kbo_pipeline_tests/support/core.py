"""Drives the core without Dagster: stage, apply in any order, publish, read back."""

import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import duckdb

from kbo_pipeline.apply.register import Register, open_register_to_copy, open_register_to_write
from kbo_pipeline.core.extracts import ExtractKey, LedgerEntry, read_ledger_entries
from kbo_pipeline.core.lake import attach_lake
from kbo_pipeline.core.places import DuckDBFile, Lake, Place
from kbo_pipeline.core.schema import MIGRATIONS
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.tables import Privacy, Table
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.operate.repair.witness import Recorded, RepairPlan, look, repair_files
from kbo_pipeline.publish.correction import Repair, begin_repair
from kbo_pipeline.publish.publish import CheckResult, Publication, Rollback, publish, rollback
from kbo_pipeline.read.published import content_hash, published_state_of
from kbo_pipeline.read.register import PublishedRegister, read_register
from kbo_pipeline.stage.staged import Staged, open_staged
from kbo_pipeline.stage.staging import stage
from kbo_pipeline_tests.support.lakes import ASKED_FOR, lake_of, variables
from kbo_pipeline_tests.support.zips import Row

THREADS: int | None = None
"""Of DuckDB in a `Core` that says nothing else; None for as many as there are processors.

The tests take one: on small extracts a second only takes time from other tests.
"""


@dataclass
class Core:
    """A data directory with the core's verbs; batches are small unless told otherwise.

    In a small register any loss is many percent: none stops unless told otherwise. No faulty row is
    set aside unless told otherwise.
    `checks` holds what the checks of the newest publication found.
    """

    directory: Path
    batch_rows: int = 3
    max_batches: int = 8
    keep_published: int = 2
    max_loss_percent: float = 100.0
    max_loss_percent_full: float = 100.0
    max_faulty_rows: int | None = 0
    privacy: Privacy = "full"
    checks: list[CheckResult] = field(default_factory=list)
    shared: Lake | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if ASKED_FOR and self.shared is None:
            self.shared = lake_of(self.directory)

    @property
    def register_file(self) -> Path:
        return self.directory / "work" / "register.duckdb"

    @property
    def register(self) -> Place:
        """The register at work, wherever it is."""
        return self.shared or DuckDBFile(self.register_file)

    @property
    def readers(self) -> Place:
        """What readers open, wherever it is."""
        return self.shared or DuckDBFile(self.database)

    @property
    def settings(self) -> dict[str, str]:
        """The variables that name data directory and register."""
        found = {"KBO_DATA_DIR": str(self.directory)}
        if self.shared is not None:
            found |= variables(self.shared)
        return found

    def all_settings(self) -> Settings:
        """What an import is told by its settings."""
        return replace(
            load_settings(self.settings, self.directory),
            batch_rows=self.batch_rows,
            max_batches=self.max_batches,
            memory_mb=1024,
            privacy=self.privacy,
            keep_published=self.keep_published,
            max_loss_percent=self.max_loss_percent,
            max_loss_percent_full=self.max_loss_percent_full,
        )

    @property
    def staging_dir(self) -> Path:
        return self.directory / "staging"

    @property
    def database(self) -> Path:
        return self.directory / "kbo.duckdb"

    def import_zip(
        self, zip_file: Path, order: random.Random | None = None, *, twice: bool = False
    ) -> Publication:
        """Stages, applies and publishes; in random order and some batches twice, when told so."""
        key = self.stage(zip_file).extract.key
        with self.applying(key) as (register, staged):
            batches = list(staged.batches)
            if order is not None:
                if twice:
                    batches += order.sample(batches, order.randint(0, len(batches)))
                order.shuffle(batches)
            for batch in batches:
                register.apply(staged, batch)
        return self.publish(key)

    def stage(self, zip_file: Path) -> Staged:
        """Stages a ZIP."""
        with self._connect() as connection:
            return stage(
                connection,
                self.all_settings(),
                zip_file,
                read_extract(zip_file),
                self.staging_dir,
                max_faulty_rows=self.max_faulty_rows,
            )

    def _connect(self) -> duckdb.DuckDBPyConnection:
        threads = self.threads or THREADS
        return duckdb.connect(":memory:", config={"threads": threads} if threads else {})

    @contextmanager
    def staged(self, key: ExtractKey) -> Iterator[tuple[duckdb.DuckDBPyConnection, Staged]]:
        """Opens the staging file of an extract."""
        with (
            self._connect() as connection,
            open_staged(connection, self.staging_dir, key) as staged,
        ):
            yield connection, staged

    @contextmanager
    def applying(self, key: ExtractKey) -> Iterator[tuple[Register, Staged]]:
        """Opens the register at work with a staged extract, whose job is begun."""
        with (
            self._connect() as connection,
            open_register_to_write(connection, self.register) as register,
            register.importing(self.staging_dir, key) as staged,
        ):
            yield register, staged

    def publish(self, key: ExtractKey, *, accept_loss: bool = False) -> Publication:
        """Publishes an extract."""
        self.checks.clear()
        with self._connect() as connection:
            return publish(
                connection,
                self.all_settings(),
                key,
                accept_loss=accept_loss,
                report_checks=self.checks.extend,
            )

    def rollback(self, key: ExtractKey) -> Rollback:
        """Undoes an extract."""
        with self._connect() as connection:
            return rollback(connection, self.all_settings(), key)

    def repair(self, zip_file: Path) -> Repair:
        """Repairs the newest number by its Full; what beginning it did."""
        key = self.stage(zip_file).extract.key
        begun = self.begin_repair(key)
        with self.applying(key) as (register, staged):
            for batch in staged.batches:
                register.apply(staged, batch)
        self.publish(key)
        return begun

    def begin_repair(self, key: ExtractKey) -> Repair:
        """Undoes the newest extract for a staged Full of its number."""
        with self._connect() as connection:
            return begin_repair(connection, self.all_settings(), key)

    def mend(self, recorded: Recorded) -> RepairPlan:
        """Makes register and published file agree; what was found, and what is left to be done."""
        settings = load_settings(self.settings, self.directory)
        with (
            self._connect() as connection,
            open_register_to_copy(connection, self.register, lock_timeout=0.0) as attach,
        ):
            remedy = look(connection, settings, recorded)
            repair_files(settings, remedy, attach)
        return remedy

    def read(self) -> duckdb.DuckDBPyConnection:
        """Opens the published register as a reader does."""
        if self.shared is not None:
            return open_to_read(self.shared)
        return duckdb.connect(str(self.database), read_only=True)

    def read_register(self) -> PublishedRegister:
        """Opens the published register as an analyst does: a file by its path, all else by name."""
        if self.shared is None:
            return read_register(self.database)
        with patch.dict(os.environ, self.settings):
            return read_register()

    @property
    def is_published(self) -> bool:
        """Whether readers have an extract."""
        return bool(published_state_of(self.readers).published)

    def at_work(self) -> duckdb.DuckDBPyConnection:
        """Opens the register at work for reading, as nobody but a test does."""
        return open_at_work(self.register)

    def content_hash(self) -> str:
        with self.read() as reader:
            return content_hash(reader)


@dataclass
class ImportedOnce:
    """ZIPs of which each series is imported once, in `directory`, and then copied."""

    directory: Path
    zips: Mapping[ExtractKey, Path]
    _made: dict[tuple[object, ...], Path] = field(default_factory=dict)

    def into(self, core: Core, *keys: ExtractKey) -> list[str]:
        """Gives an empty data directory these extracts; the content's hash after each of them."""
        if core.shared is not None:  # another lake cannot be copied
            hashes = []
            for key in keys:
                core.import_zip(self.zips[key])
                hashes.append(core.content_hash())
            return hashes
        series = [self._after(core, keys[: place + 1]) for place in range(len(keys))]
        if series:
            shutil.copytree(series[-1], core.directory)
        return [hash_of(directory / core.database.name) for directory in series]

    def _after(self, like: Core, keys: tuple[ExtractKey, ...]) -> Path:
        """The data directory after these extracts, imported with the settings of another."""
        settings = (like.batch_rows, like.max_batches, like.keep_published, like.max_faulty_rows)
        place = (*settings, *keys)
        if place not in self._made:
            core = replace(like, directory=self.directory / str(len(self._made)), checks=[])
            if keys[1:]:
                shutil.copytree(self._after(like, keys[:-1]), core.directory)
            core.import_zip(self.zips[keys[-1]])
            self._made[place] = core.directory
        return self._made[place]


def open_to_read(place: Lake) -> duckdb.DuckDBPyConnection:
    """Opens a shared register as a reader does; what it publishes later is seen too."""
    connection = duckdb.connect(":memory:")
    connection.execute(f"USE {attach_lake(connection, place, 'published', 'READ_ONLY')}")
    return connection


def open_at_work(place: Place) -> duckdb.DuckDBPyConnection:
    """Opens a register at work for reading, as nobody but a test does."""
    connection = duckdb.connect(":memory:")
    name = place.attach_to_read(connection, "published")
    connection.execute(f"USE {name}.{place.schema_at_work}")
    return connection


def publication_of(place: Place) -> object:
    """What every publication changes: which file readers open, or which snapshot of a lake."""
    if place.file is not None:
        found = place.file.stat()
        return found.st_ino, found.st_mtime_ns
    with duckdb.connect(":memory:") as reader:
        place.attach_to_read(reader, "published")
        return reader.execute("SELECT id FROM published.current_snapshot()").fetchall()


def current_rows(reader: duckdb.DuckDBPyConnection, table: Table) -> list[Row]:
    """The rows of `current.<table>`, columns of the CSV only, sorted."""
    return rows_of(reader, table, f"current.{table.name}")


def rows_of(reader: duckdb.DuckDBPyConnection, table: Table, source: str) -> list[Row]:
    """The rows of any relation with a table's columns, sorted."""
    columns = ", ".join(table.column_names)
    return sorted_rows(reader.execute(f"SELECT {columns} FROM {source}").fetchall())


def sorted_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows in one order, None included."""
    return sorted(rows, key=repr)


def chain_of(file: Path) -> tuple[LedgerEntry, ...]:
    with duckdb.connect(str(file), read_only=True) as connection:
        return read_ledger_entries(connection)


def hash_of(file: Path) -> str:
    with duckdb.connect(str(file), read_only=True) as connection:
        return content_hash(connection)


def flip(file: Path, place: int) -> None:
    """Changes one bit of a file."""
    with file.open("r+b") as content:
        content.seek(place)
        byte = content.read(1)[0]
        content.seek(place)
        content.write(bytes([byte ^ 8]))


ALL_VERSIONS = [(number, m.description) for number, m in enumerate(MIGRATIONS, start=1)]


def versions(core: Core) -> list[tuple[int, str]] | None:
    """What the register at work says of its versions; None where it says nothing."""
    with core.at_work() as connection:
        try:
            return connection.execute(READ_VERSIONS).fetchall()
        except duckdb.CatalogException:
            return None


READER = """
import json, sys, threading
from kbo_pipeline.read.register import read_register
from kbo_pipeline.read.published import content_hash
seen, ended = set(), threading.Event()
def read():
    while not ended.wait(0.02):
        with read_register() as register:
            connection = register.connection
            (status,) = connection.execute(
                "SELECT status FROM import_jobs WHERE id = '0141-update'").fetchone() or (None,)
            seen.add((status == "completed", content_hash(connection)))
reader = threading.Thread(target=read)
print("ready", flush=True)
reader.start()
sys.stdin.readline()
ended.set()
reader.join()
print(json.dumps(sorted(seen)))
"""


READ_VERSIONS = "SELECT version, description FROM schema_version ORDER BY version"
