"""How a day's Update grows with the register, and with the extracts that are published.

Registers are made first, and kept as they are; then each of some rounds imports a day's Update into
a copy of each, one after the other, so that all are measured on the machine in the same state.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import dagster as dg
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import text

from kbo_pipeline.sample import Sample
from kbo_pipeline_tests.bench.measuring import Measurement
from kbo_pipeline_tests.bench.ours import Ours
from kbo_pipeline_tests.bench.sample import extracts

SIZES = (100, 10, 1)
"""Parts of the whole register."""

PUBLISHED = (1, 30, 365)
"""Extracts after which a day's Update is measured."""

_DAILY_SHARE = 0.001
_ALL_KEPT = {"KBO_KEEP_EXTRACTS": "400"}

Row = dict[str, float]


def registers_by_size(kept: Path, enterprises: int) -> Iterator[tuple[Row, Ours, Path]]:
    """A register of each size after its first Full, and the Update that comes next.

    Args:
        kept: where extracts and registers are kept; what is missing is made.
        enterprises: of the whole register.
    """
    for part in SIZES:
        made = extracts(kept, enterprises // part)
        ours = Ours(kept / f"register-{enterprises // part}", {})
        if not (ours.directory / "made").exists():
            shutil.rmtree(ours.directory, ignore_errors=True)
            ours.import_zip(made.full)
            (ours.directory / "made").touch()
        yield {"enterprises": enterprises // part}, ours, made.day


def registers_by_extracts(kept: Path, enterprises: int) -> Iterator[tuple[Row, Ours, Path]]:
    """A register after each number of `PUBLISHED`, and the Update that comes next; all alike.

    Args:
        kept: where extracts and registers are kept; what is missing is made.
        enterprises: of each register.
    """
    sample = Sample(enterprises=enterprises, seed=7, default_share=_DAILY_SHARE, change_shares=())
    first, zips = sample.first_number, kept / f"year-{enterprises}"
    before = Ours(kept / f"year-{enterprises}-0", _ALL_KEPT)
    for done, count in pairwise((0, *PUBLISHED)):
        ours = Ours(kept / f"year-{enterprises}-{count}", _ALL_KEPT)
        if not (ours.directory / "made").exists():
            shutil.rmtree(ours.directory, ignore_errors=True)
            if done:
                before.copy_to(ours.directory)
            numbers = range(first + done, first + count)
            writes = [sample.write_update if n > first else sample.write_full for n in numbers]
            ours.import_zip(*(write(zips, n) for write, n in zip(writes, numbers, strict=True)))
            (ours.directory / "made").touch()
        yield {"extracts": count}, ours, sample.write_update(zips, first + count)
        before = ours


def measured(registers: Iterator[tuple[Row, Ours, Path]], work: Path) -> list[Row]:
    """One round: a day's Update into a copy of each register.

    Args:
        registers: what each is, the register, the Update.
        work: where the copies are.

    Returns:
        A row for each: what it is, seconds of each step and whole, bytes.
    """
    rows = []
    for row, ours, update in registers:
        shutil.rmtree(work, ignore_errors=True)
        copy = ours.copy_to(work)
        took = copy.import_zip(update)
        rows.append({**row, **_figures(copy, took, update)})
        print(f"{row}: {took.seconds:.1f} s", flush=True)
    return rows


KINDS: dict[str, Callable[[Path, int], Iterator[tuple[Row, Ours, Path]]]] = {
    "size": registers_by_size,
    "extracts": lambda kept, enterprises: registers_by_extracts(kept, enterprises // 100),
}
"""What it grows with."""


def _figures(ours: Ours, took: Measurement, zip_file: Path) -> Row:
    phases = ours.phases(zip_file)
    with ours.instance() as instance:
        return {
            **phases,
            "register work": sum(phases.values()),
            "whole": took.seconds,
            "peak": took.peak,
            "written": took.written,
            "file": os.stat(ours.database).st_size,
            "dagster": _dagster_bytes(instance),
        }


def _dagster_bytes(instance: dg.DagsterInstance) -> int:
    storage = instance.event_log_storage
    assert isinstance(storage, PostgresEventLogStorage)
    with storage.index_connection() as connection:
        size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar()
    return int(size or 0)
