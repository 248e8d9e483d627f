"""`kbo export`, `kbo verify` and `kbo copy-register`: parse, one call, print."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kbo_pipeline.commands.console import bar, print_json, table, terminal
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.text import megabytes

if TYPE_CHECKING:
    from kbo_pipeline.publish.verification import Verification


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def export(directory: Path) -> None:
    """Write the current tables as Parquet, into a directory that is complete or absent.

    One file a table, sorted and compressed, the profile of each enterprise among them, and
    manifest.json. KBO_PRIVACY says whether natural persons are in it. An export that is there is
    replaced; anything else stays as it is, and the command fails.
    """
    from kbo_pipeline.read.export import MANIFEST, write_export

    settings = load_settings()
    with bar("reading", None) as report:
        done = write_export(settings, directory, report=report)
    for made in done.tables.values():
        size = f"{made.bytes / 1e3:,.1f} kB" if made.bytes < 1e6 else megabytes(made.bytes)
        click.echo(f"{directory / made.file}  {made.rows:,} rows, {size}")
    click.echo(directory / MANIFEST)
    click.echo(f"{done.source}; extract {done.extract}; KBO_PRIVACY={done.privacy}")


@click.command()
@click.argument("zip_file", metavar="FULL_ZIP", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(zip_file: Path, as_json: bool) -> None:
    """Compare the published register with a Full of a published number, row for row.

    The whole register is read as it was at that number, whatever KBO_PRIVACY says. Exits with 0
    only if both are equal.
    """
    from kbo_pipeline.publish import verification

    settings = load_settings()
    with bar("reading", None) as report:
        found = verification.verify(settings, zip_file, report=report)
    if as_json:
        print_json(found.to_json())
    else:
        _print_verification(found)
    if not found.is_equal:
        sys.exit(1)


@click.command("copy-register")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy_register(source: str, target: str) -> None:
    """Copy the published register from one place to another, and compare both.

    A place is a DuckDB file, ducklake:postgres:... (its files in KBO_DATABASE_FILES), md:NAME, or
    the word KBO_DATABASE for what that names. Put a password into PGPASSWORD. All history and
    the ledger are copied, so that KBO_DATABASE may name the copy from then on. Nothing may be at
    TO. The copy appears only once its content has the hash of the original.
    """
    from kbo_pipeline.core.database import connect
    from kbo_pipeline.publish import copy

    settings = load_settings()
    places = [settings.place(text) for text in (source, target)]
    with connect(settings) as connection:
        content = copy.copy_register(
            connection,
            places[0],
            places[1],
            privacy=settings.privacy,
            report=lambda line: click.echo(line, err=True),
        )
    click.echo(f"{places[0]} -> {places[1]}: equal, content {content}")


def _print_verification(found: "Verification") -> None:
    from rich.text import Text

    numbers = ("rows in ZIP", "in register", "only in ZIP", "only in register")
    rows = table("table", *numbers, numbers=numbers)
    for name, drift in found.tables.items():
        equal = (drift.rows_in_zip, drift.rows_in_register)
        missing = (drift.only_in_zip, drift.only_in_register)
        cells = [Text(f"{number:,}", "bold red" if number else "") for number in missing]
        rows.add_row(name, *(f"{number:,}" for number in equal), *cells)
    terminal().print(rows)
    for name, drift in found.tables.items():
        for side, samples in drift.samples.items():
            for sample in samples:
                terminal().print(f"{name}, only in {side}: {sample}", markup=False)
    terminal().print(str(found), markup=False)
