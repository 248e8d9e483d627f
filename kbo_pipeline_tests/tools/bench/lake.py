"""`make bench-lake`: a big Update on a lake, and how a lake grows over its extracts.

Each round begins with the same lake: its database in PostgreSQL and its files are
copied once the Full is published, and put back each time.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import duckdb
import psycopg2

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.lake import compact
from kbo_pipeline.core.places import Lake
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import ENTERPRISE
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core, open_to_read
from kbo_pipeline_tests.support.lakes import new_lake
from kbo_pipeline_tests.tools.bench import lake_page, page

_CATALOG_BYTES = (
    "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'kbo' AND c.relkind = 'r'"
)
_LOOKED_UP = 25
"""Enterprises that a reader asks for in turn."""


def main() -> None:
    """Measures what is not measured yet, and writes the section of the page from all of it."""
    kept = load_settings().data_dir / "bench"
    parser = argparse.ArgumentParser(prog="make bench-lake", description=__doc__)
    parser.add_argument("--enterprises", type=int, default=100_000)
    parser.add_argument("--share", type=float, default=0.1, help="of entities that change, 0 to 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--extracts", type=int, default=100, help="over which growth is measured")
    parser.add_argument("--results", type=Path, default=kept / "lake.jsonl")
    parser.add_argument("--write", type=Path, help="the page, such as docs/scale.md")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    work = kept / "lake"
    shutil.rmtree(work, ignore_errors=True)
    before = page.read(options.results)
    with options.results.open("a") as out:

        def keep(kind: str, rows: Any) -> None:
            out.write(json.dumps({"kind": kind, "rows": rows, **page.where()}) + "\n")
            out.flush()

        done = len(before.get("update", []))
        if done < options.rounds:
            bench = _Bench(work / "update", options.enterprises, options.share)
            for number in range(done, options.rounds):
                print(f"round {number + 1} of {options.rounds}", flush=True)
                keep("update", bench.measured())
        if "growth" not in before:
            growth = _growth(work / "growth", options.enterprises // 10, options.extracts)
            keep("growth", growth)
    shutil.rmtree(work, ignore_errors=True)
    if options.write:
        lake_page.write(options.write, page.read(options.results))


class _Bench:
    """A lake after its first Full, and a big Update that comes next."""

    def __init__(self, directory: Path, enterprises: int, share: float) -> None:
        self._directory, self._enterprises = directory, enterprises
        sample = Sample(enterprises, seed=7, change_shares=(), default_share=share)
        self._lake = new_lake(directory / "files")
        self._core = Core(directory / "data", batch_rows=1000, max_batches=64, shared=self._lake)
        self._core.import_zip(sample.write_full(directory, sample.first_number))
        self._update = sample.write_update(directory, sample.first_number + 1)
        with open_to_read(self._lake) as reader:
            rows = reader.execute(
                f"SELECT {ENTERPRISE.key} FROM {ENTERPRISE.name} USING SAMPLE"
                f" {_LOOKED_UP} ROWS (reservoir, 7)"
            ).fetchall()
        self._numbers = [number for (number,) in rows]
        self._database = dict(self._lake.catalog)["dbname"]
        shutil.copytree(self._lake.files, directory / "kept")
        _postgres(self._lake, f"CREATE DATABASE {self._database}_kept TEMPLATE {self._database}")

    def measured(self) -> dict[str, Any]:
        """The Update, with a reader beside it."""
        shutil.rmtree(self._lake.files)
        shutil.copytree(self._directory / "kept", self._lake.files)
        _postgres(
            self._lake,
            f"DROP DATABASE {self._database} WITH (FORCE)",
            f"CREATE DATABASE {self._database} TEMPLATE {self._database}_kept",
        )
        staged = self._core.stage(self._update)
        key = staged.extract.key
        environment = {
            **os.environ,
            "KBO_DATA_DIR": str(self._core.directory),
            "KBO_DATABASE": self._lake.address,
            "KBO_DATABASE_FILES": self._lake.files,
        }
        reader = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.lake_reader", *self._numbers],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        apply = _seconds(lambda: _apply(self._core, key))
        publish = _seconds(lambda: self._core.publish(key))
        lookups = json.loads(reader.communicate()[0])
        print(f"{apply:.1f} s and {publish:.1f} s", flush=True)
        return {
            "enterprises": self._enterprises,
            "rows": sum(staged.records.values()),
            "batches": len(staged.batches),
            "apply": apply,
            "publish": publish,
            "lookup median": median(lookups),
            "lookup 95%": quantiles(lookups, n=20)[-1],
            "lookup most": max(lookups),
        }


def _apply(core: Core, key: ExtractKey) -> None:
    """Applies all batches, as a run of Dagster does."""
    with core.applying(key) as (register, staged):
        for batch in staged.batches:
            register.apply(staged, batch)


def _growth(directory: Path, enterprises: int, extracts: int) -> dict[str, Any]:
    """How catalog and files grow over so many extracts, and what compacting leaves."""
    sample = Sample(enterprises, seed=7, change_shares=(), default_share=0.001)
    lake = new_lake(directory / "files")
    core = Core(directory / "data", batch_rows=1000, max_batches=64, shared=lake)
    core.import_zip(sample.write_full(directory, sample.first_number))
    rows = [{"extracts": 0, "seconds": 0.0, **_size(lake)}]
    for number in range(1, extracts + 1):
        zip_file = sample.write_update(directory, sample.first_number + number)
        seconds = _seconds(partial(core.import_zip, zip_file))
        rows.append({"extracts": number, "seconds": seconds, **_size(lake)})
        zip_file.unlink()
        print(f"extract {number}: {seconds:.1f} s", flush=True)
    with duckdb.connect(":memory:") as connection:
        took = _seconds(lambda: compact(connection, lake, keep_days=0))
    return {"enterprises": enterprises, "rows": rows, "compacted": {"seconds": took, **_size(lake)}}


def _size(lake: Lake) -> dict[str, int]:
    files = [file.stat().st_size for file in Path(lake.files).rglob("*.parquet")]
    ((catalog,),) = _postgres(lake, _CATALOG_BYTES, dbname=dict(lake.catalog)["dbname"])
    return {"catalog": int(catalog), "files": len(files), "bytes": sum(files)}


def _postgres(lake: Lake, *statements: str, dbname: str = "postgres") -> Sequence[Any]:
    """Executes statements on the server of a lake; what the last one returns."""
    keywords: dict[str, Any] = {**dict(lake.catalog), "dbname": dbname}
    connection = psycopg2.connect(**keywords)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description is not None else []
    connection.close()
    return rows


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
