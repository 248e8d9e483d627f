"""`kbo export` and `kbo verify`: parse, one call, print."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kbo_pipeline.commands.console import print_json

if TYPE_CHECKING:
    from kbo_pipeline.publish.verification import Verification


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def export(directory: Path) -> None:
    """Write the current tables as Parquet, into a directory that is complete or absent.

    One file a table, sorted and compressed, the profile of each enterprise among them, and
    manifest.json. KBO_PRIVACY says whether natural persons are in it. An export that lies there is
    replaced; anything else stays, and is refused.
    """
    from kbo_pipeline.core.disk_space import megabytes
    from kbo_pipeline.core.settings import load_settings
    from kbo_pipeline.read.export import MANIFEST, write_export

    settings = load_settings()
    with _bar() as report:
        done = write_export(settings, directory, report=report)
    for table in done.tables.values():
        size = f"{table.bytes / 1e3:,.1f} kB" if table.bytes < 1e6 else megabytes(table.bytes)
        click.echo(f"{directory / table.file}  {table.rows:,} rows, {size}")
    click.echo(directory / MANIFEST)
    click.echo(f"{done.source}; extract {done.extract}; KBO_PRIVACY={done.privacy}")


@click.command()
@click.argument("zip_file", metavar="FULL_ZIP", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(zip_file: Path, as_json: bool) -> None:
    """Compare the published register with a Full of a published number, row for row.

    The register is read as it was at that number, all of it, whatever KBO_PRIVACY says. Ends with 0
    only when both are equal.
    """
    from kbo_pipeline.core.settings import load_settings
    from kbo_pipeline.publish import verification

    settings = load_settings()
    with _bar() as report:
        found = verification.verify(settings, zip_file, report=report)
    if as_json:
        print_json(found.to_json())
    else:
        _print_verification(found)
    if not found.is_equal:
        sys.exit(1)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """Shows what is at work and how far all is, where somebody can see it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name, done, total: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        yield show


def _print_verification(found: "Verification") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("table")
    for name in ("rows in ZIP", "in register", "only in ZIP", "only in register"):
        table.add_column(name, justify="right")
    for name, drift in found.tables.items():
        numbers = (drift.rows_in_zip, drift.rows_in_register)
        missing = (drift.only_in_zip, drift.only_in_register)
        cells = [Text(f"{number:,}", "bold red" if number else "") for number in missing]
        table.add_row(name, *(f"{number:,}" for number in numbers), *cells)
    console = Console()
    console.print(table)
    for name, drift in found.tables.items():
        for side, rows in drift.samples.items():
            for row in rows:
                console.print(f"{name}, only in {side}: {row}", markup=False)
    console.print(str(found), markup=False)
