"""How a day's Update grows with the register, and with the extracts that are published.

Registers are made first, and kept as they are; then each of some rounds imports a day's Update into
a copy of each, one after the other, so that all are measured on the machine in the same state.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from kbo_pipeline.core.extracts import key_in_file_name
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.tools.bench.measuring import Measurement
from kbo_pipeline_tests.tools.bench.ours import Ours
from kbo_pipeline_tests.tools.bench.sample import extracts

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

    The extracts before are imported by the core, and noted in Dagster's storage as if by it: a year
    of imports one after the other would take an hour.

    Args:
        kept: where extracts and registers are kept; what is missing is made.
        enterprises: of each register.
    """
    sample = Sample(enterprises=enterprises, seed=7, default_share=_DAILY_SHARE, change_shares=())
    first, zips = sample.first_number, kept / f"year-{enterprises}"
    for done, count in pairwise((0, *PUBLISHED)):
        ours = Ours(kept / f"year-{enterprises}-{count}", _ALL_KEPT)
        core = Core(ours.directory, batch_rows=1000, max_batches=64)
        if not (ours.directory / "made").exists():
            shutil.rmtree(ours.directory, ignore_errors=True)
            if done:
                shutil.copytree(kept / f"year-{enterprises}-{done}-core", ours.directory)
            for number in range(first + done, first + count):
                write = sample.write_update if number > first else sample.write_full
                core.import_zip(write(zips, number))
            as_is = kept / f"year-{enterprises}-{count}-core"  # without Dagster's storage
            shutil.rmtree(as_is, ignore_errors=True)
            shutil.copytree(ours.directory, as_is)
            ours.records("fill")
            (ours.directory / "made").touch()
        yield {"extracts": count}, ours, sample.write_update(zips, first + count)


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
    found = ours.records("phases", str(key_in_file_name(zip_file.name)))
    phases = found["phases"]
    return {
        **phases,
        "register work": sum(phases.values()),
        "whole": took.whole,
        "peak": took.peak,
        "written": took.written,
        "file": os.stat(ours.database).st_size,
        "dagster": found["size"],
    }
