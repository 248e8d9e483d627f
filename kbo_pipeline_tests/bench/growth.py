"""How a day's Update grows with the register, and with the extracts that are published."""

import os
import shutil
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


def by_size(directory: Path, kept: Path, enterprises: int) -> list[dict[str, float]]:
    """The same number of changes, on registers of three sizes.

    Args:
        directory: where to import.
        kept: where the extracts are.
        enterprises: of the whole register.

    Returns:
        A row for each size: enterprises, seconds of each step and whole, bytes.
    """
    rows = []
    for part in SIZES:
        shutil.rmtree(directory, ignore_errors=True)
        made = extracts(kept, enterprises // part)
        ours = Ours(directory, {})
        ours.import_zip(made.full)
        took = ours.import_zip(made.day)
        rows.append({"enterprises": enterprises // part, **_row(ours, took, made.day)})
    return rows


def by_extracts(directory: Path, enterprises: int) -> list[dict[str, float]]:
    """A year of daily Updates of the same size on one register; a row after each of `PUBLISHED`."""
    shutil.rmtree(directory, ignore_errors=True)
    sample = Sample(enterprises=enterprises, seed=7, default_share=_DAILY_SHARE, change_shares=())
    ours = Ours(directory, {"KBO_KEEP_EXTRACTS": "400"})
    ours.import_zip(sample.write_full(directory / "zips", 140))
    rows = []
    for before, count in pairwise((0, *PUBLISHED)):
        updates = [
            sample.write_update(directory / "zips", 140 + number)
            for number in range(before + 1, count + 1)
        ]
        if updates[:-1]:
            ours.import_zip(*updates[:-1])
        took = ours.import_zip(updates[-1])
        rows.append({"extracts": count, **_row(ours, took, updates[-1])})
    return rows


def _row(ours: Ours, took: Measurement, zip_file: Path) -> dict[str, float]:
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
