"""`kbo show`, `find`, `changes`, `export`, `verify`, `copy-register`: the published register."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kbo_pipeline.commands.console import (
    bar,
    complete_extract,
    print_json,
    table,
    terminal,
    with_source,
)
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.text import cut, megabytes, sanitize

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kbo_pipeline.publish.verification import Verification
    from kbo_pipeline.read.register import PublishedRegister
    from kbo_pipeline.read.types import Change, Language

_SHOWN = 10  # establishment units, and events, of one enterprise
_LONGEST = 80  # characters of a text before or after a change
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("number")
@click.option(
    "--at",
    metavar="EXTRACT",
    shell_complete=complete_extract,
    help="As it was at this extract: 141, or 0141-update.",
)
@click.option(
    "--lang",
    type=click.Choice(["nl", "fr", "de"]),
    default="nl",
    show_default=True,
    help="Language of descriptions, streets and places.",
)
@click.option("--all", "show_all", is_flag=True, help="All establishment units and all history.")
@_JSON
def show(number: str, at: str | None, lang: "Language", show_all: bool, as_json: bool) -> None:
    """Show an enterprise: names, addresses, activities, establishment units, history.

    NUMBER is that of an enterprise, or of one of its establishment units or branches, with or
    without dots and BE.
    """
    with _register() as register:
        enterprise = register.enterprise(number, at, lang)
    if as_json:
        print_json(enterprise.to_json())
        return
    from kbo_pipeline.commands.page import page

    terminal().print(page(enterprise, None if show_all else _SHOWN))


@click.command()
@click.argument("text", required=False, default="")
@click.option("--zipcode", help="Of an address of the enterprise or one of its units.")
@click.option("--nace", help="First digits of a NACE code of an activity.")
@click.option("--nace-version", help="Version of that code; by default the newest.")
@click.option("--status", help="KBO's code of its status, such as AC.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most.")
@_JSON
def find(
    text: str,
    zipcode: str | None,
    nace: str | None,
    nace_version: str | None,
    status: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Find enterprises by name, accents and case aside; the best matches first.

    TEXT is a name or words of one, of an enterprise, an establishment unit or a branch. It may be
    left out where --zipcode or --nace is given.
    """
    with _register() as register:
        matches = register.find(
            text,
            zipcode=zipcode,
            nace=nace,
            nace_version=nace_version,
            status=status,
            limit=limit + 1,  # to see whether there are more
        )
        if not matches:
            register.check_known(
                zipcode=zipcode, nace=nace, nace_version=nace_version, status=status
            )
        newest = register.extracts[0]
    has_more, matches = len(matches) > limit, matches[:limit]
    if as_json:
        print_json(with_source(newest, [asdict(match) for match in matches]))
        return
    if not matches:
        click.echo("nothing found")
        return
    rows = table("number", "name", "place", "found as")
    for match in matches:
        place = f"{match.zipcode or ''} {match.municipality or ''}".strip()
        if match.struck_off is not None:
            place += f" (struck off on {match.struck_off})"
        other = match.matched_name if match.matched_name != match.name else None
        if match.matched_number != match.enterprise_number:
            other = f"{match.matched_name} ({match.matched_number})"
        texts = (match.enterprise_number, match.name, place, other or "")
        rows.add_row(*map(_text, map(sanitize, texts)))
    terminal().print(rows)
    if has_more:
        click.echo("there are more: --limit shows them")
    click.echo(newest.source)


@click.command()
@click.argument("extract", shell_complete=complete_extract)
@click.option(
    "--limit", type=click.IntRange(0), default=20, show_default=True, help="Of each kind at most."
)
@_JSON
def changes(extract: str, limit: int, as_json: bool) -> None:
    """Count and list what an extract changed, by table and kind.

    EXTRACT is a published one, such as 0141-update. docs/changes.md says what the kinds are. With
    --json all changes are printed.
    """
    with _register() as register:
        published = register.extract(extract)
        counts = register.count_changes(published.number)
        if as_json:
            data = {
                "counts": [
                    {"table": table, "kind": kind, "entities": count}
                    for (table, kind), count in counts.items()
                ],
                "changes": [asdict(change) for change in register.changes(published.number)],
            }
            print_json(with_source(published, data))
            return
        _print_changes(register, published.key, counts, limit)
    click.echo(published.source)


def _print_changes(
    register: "PublishedRegister", key: str, counts: dict[tuple[str, str], int], limit: int
) -> None:
    counts = {kind: count for kind, count in counts.items() if count}
    if not counts:
        click.echo(f"{key}: changed nothing")
        return
    rows = table("table", "kind", "entities", numbers=["entities"])
    for (name, kind), count in counts.items():
        rows.add_row(name, kind, f"{count:,}")
    terminal().print(rows)
    if limit == 0:
        return
    for (name, kind), same in groupby(register.changes(key), key=lambda c: (c.table, c.kind)):
        click.echo(f"\n{name}: {kind}")
        terminal().print(_listed(islice(same, limit)))
        if counts[name, kind] > limit:
            click.echo(f"  and {counts[name, kind] - limit:,} more: --limit shows them")


def _listed(changes: "islice[Change]") -> "RenderableType":
    from rich.table import Table

    from kbo_pipeline.read.changes import NEW, STOPPED

    grid = Table.grid(padding=(0, 2))
    for change in changes:
        texts = [
            cut(sanitize(text or "nothing"), _LONGEST) for text in (change.before, change.after)
        ]
        words = " → ".join(texts) if change.kind not in (NEW, STOPPED) else ""
        grid.add_row(*map(_text, (f"  {change.entity_number}", sanitize(change.name), words)))
    return grid


@contextmanager
def _register() -> Iterator["PublishedRegister"]:
    """The published register; an error of its file becomes one line."""
    import duckdb

    from kbo_pipeline.read.register import read_register, unreadable

    with read_register() as register:
        try:
            yield register
        except (duckdb.IOException, duckdb.SerializationException) as error:
            raise unreadable(register.place, error) from None


def _text(text: str) -> "RenderableType":
    from rich.text import Text

    return Text(text)


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
    for file in done.tables.values():
        size = f"{file.bytes / 1e3:,.1f} kB" if file.bytes < 1e6 else megabytes(file.bytes)
        click.echo(f"{directory / file.file}  {file.rows:,} rows, {size}")
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
        result = verification.verify(settings, zip_file, report=report)
    if as_json:
        print_json(result.to_json())
    else:
        _print_verification(result)
    if not result.is_equal:
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
    origin, destination = settings.place(source), settings.place(target)
    with connect(settings) as connection:
        content = copy.copy_register(
            connection,
            origin,
            destination,
            privacy=settings.privacy,
            report=lambda line: click.echo(line, err=True),
        )
    click.echo(f"{origin} -> {destination}: equal, content {content}")


def _print_verification(result: "Verification") -> None:
    from rich.text import Text

    numbers = ("rows in ZIP", "in register", "only in ZIP", "only in register")
    rows = table("table", *numbers, numbers=numbers)
    for name, drift in result.tables.items():
        equal = (drift.rows_in_zip, drift.rows_in_register)
        missing = (drift.only_in_zip, drift.only_in_register)
        cells = [Text(f"{number:,}", "bold red" if number else "") for number in missing]
        rows.add_row(name, *(f"{number:,}" for number in equal), *cells)
    terminal().print(rows)
    for name, drift in result.tables.items():
        for side, samples in drift.samples.items():
            for sample in samples:
                terminal().print(f"{name}, only in {side}: {sample}", markup=False)
    terminal().print(str(result), markup=False)
