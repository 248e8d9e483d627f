"""`kbo index` and `kbo match`: the search index, and whole lists that are looked up in it."""

from pathlib import Path

import click

from kbo_pipeline.commands.console import bar
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.text import counted, megabytes


@click.command()
def index() -> None:
    """Make the search index of the published register, which forgives spelling.

    kbo start and kbo import do so by themselves. An index that is right stays as it is; one of an
    extract before is brought up to date; a damaged one is made again.
    """
    from kbo_pipeline.read.index import build_index

    settings = load_settings()
    with bar("reading", None) as report:
        built = build_index(settings, report=report)
    words = {"kept": "is up to date", "updated": "brought up to date", "made": "made"}
    size = f"{built.documents:,} documents, {megabytes(built.bytes, 2)}"
    click.echo(f"{settings.search_dir}: {words[built.how]}: {built.mark.extract}, {size}")


@click.command("match")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--name", required=True, metavar="COLUMN", help="Column of IN with the name.")
@click.option("--zipcode", metavar="COLUMN", help="Column of IN with a postcode.")
@click.option("--number", metavar="COLUMN", help="Column of IN with a number, however written.")
def match_command(
    source: Path, target: Path, name: str, zipcode: str | None, number: str | None
) -> None:
    """Find the enterprise of each line of a list, such as one of customers.

    IN and OUT are CSV files with a header, or Parquet, by the ending of their names. OUT has the
    lines of IN, and for each the best candidate, its score from 0 to 1, whether it is certain, the
    runner-up, and why. A call that is stopped goes on when it is made again; OUT appears at the
    end, whole.
    """
    from kbo_pipeline.read.match_file import Columns, match_file

    settings = load_settings()
    with bar("reading", None) as report:
        counts = match_file(settings, source, target, Columns(name, zipcode, number), report=report)
    click.echo(
        f"{target}: {counted(counts.lines, 'line')}, {counts.certain:,} certain,"
        f" {counts.nobody:,} without a candidate"
    )
