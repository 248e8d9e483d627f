"""The table of `make chaos`, on the terminal and in `docs/reliability.md`."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from kbo_pipeline_tests.tools.chaos.outcomes import HEADINGS, Record, Row

_ABOUT = """\
After each repetition, the content of the register is compared with that of an undisturbed import.
No key may be in the ledger twice, no job unfinished, no run or pool slot left over, and no
temporary file left behind; and a reader that opens the published file ten times a second must not
have seen an error or half an extract. "went on" is the longest time from the end of a fault, or
from the restart, to the next step of a run or batch; more than 60 s counts as a problem too.
"published" is the longest time from a fault to the publication of its extract.
"""


def print_table(records: Sequence[Record], console: Console) -> None:
    """Prints a line for each row."""
    table = Table(*HEADINGS)
    for record in records:
        table.add_row(*record.outcome.cells())
    console.print(table)


def markdown(records: Sequence[Record], missing: Sequence[Row], directory: Path) -> str:
    """The page: the table, what it was measured on, and what else was seen.

    Args:
        records: what came of rows.
        missing: the rows of which there is nothing yet.
        directory: on the disk that it was done on.
    """
    seeds = ", ".join(sorted({str(record.seed) for record in records}))
    commits = ", ".join(sorted({_short(record.commit) for record in records}))
    dates = sorted(record.date[:10] for record in records)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    hours = sum(record.seconds for record in records) / 3600
    left = "; ".join(f"{row.name} ({row.times})" for row in missing)
    lines = [
        "# Reliability",
        "",
        *(
            [f"**Not whole yet:** these rows of the plan are still to be run: {left}.", ""]
            * bool(left)
        ),
        f"Written by `make chaos`, {when}, seed {seeds}, commit {commits}, {hours:.1f} hours of"
        f" rows, on {machine(directory)}.",
        "",
        _ABOUT,
        f"| {' | '.join(HEADINGS)} | commit |",
        "|" + "---|" * (len(HEADINGS) + 1),
        *(
            f"| {' | '.join(record.outcome.cells())} | {_short(record.commit)} |"
            for record in records
        ),
        "",
    ]
    notes = [
        f"- {record.outcome.name}: {text}: {count}"
        for record in records
        for text, count in record.outcome.notes.items()
    ]
    if notes:
        lines += ["What else was seen, and how often:", "", *notes, ""]
    return "\n".join(lines)


def machine(directory: Path) -> str:
    """What this runs on: system, cores, memory, the file system of a directory."""
    gigabytes = psutil.virtual_memory().total / 2**30
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {gigabytes:.0f} GB of"
        f" memory, {_file_system(directory)}, Python {platform.python_version()}"
    )


def _short(commit: str) -> str:
    return commit[:10] + ("+" if commit.endswith("+") else "")


def _file_system(directory: Path) -> str:
    """The type of the file system that holds a directory."""
    path = str(directory.resolve())
    mounts = [p for p in psutil.disk_partitions(all=True) if _is_below(path, p.mountpoint)]
    return max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else "unknown disk"


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top.rstrip('/')}/")
