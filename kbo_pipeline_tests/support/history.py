"""Two extracts of which the second keeps, replaces and deletes rows of the first."""

from pathlib import Path

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import Row, keys_for, rows_for

FULL = ExtractKey(140, "full")
UPDATE = ExtractKey(141, "update")
NUMBERS = [f"0200.000.{n:03d}" for n in range(8)]
FIRST = rows_for(NUMBERS, "first")
SECOND = rows_for(NUMBERS[2:6], "second")
DELETES = keys_for(NUMBERS[1:5])


def rows_and_codes(numbers: list[str], mark: str) -> dict[str, list[Row]]:
    """One row for each number in each of the seven tables, and two codes."""
    codes: list[Row] = [("Status", code, "NL", None) for code in ("KEPT", mark)]
    return rows_for(numbers, mark) | {"code": codes}


def apply_some(core: Core, zip_file: Path, numbers: slice) -> ExtractKey:
    """Stages a ZIP and applies some of its batches."""
    key = core.stage(zip_file).extract.key
    with core.applying(key) as (register, staged):
        for batch in staged.batches[numbers]:
            register.apply(staged, batch)
    return key
