"""`kbo show`, `kbo find` and `kbo changes`: what the published register says."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby, islice
from typing import TYPE_CHECKING

import click

from kbo_pipeline.commands.console import (
    complete_extract,
    print_json,
    table,
    terminal,
    with_source,
)
from kbo_pipeline.core.text import cut, sanitize

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kbo_pipeline.read.changes import Change
    from kbo_pipeline.read.register import PublishedRegister
    from kbo_pipeline.read.types import Language

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
        found = register.find(
            text,
            zipcode=zipcode,
            nace=nace,
            nace_version=nace_version,
            status=status,
            limit=limit + 1,  # to see whether there are more
        )
        if not found:
            register.check_known(
                zipcode=zipcode, nace=nace, nace_version=nace_version, status=status
            )
        newest = register.extracts[0]
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json(with_source(newest, [asdict(match) for match in found]))
        return
    rows = table("number", "name", "place", "found as")
    for match in found:
        place = f"{match.zipcode or ''} {match.municipality or ''}".strip()
        if match.struck_off is not None:
            place += f" (struck off on {match.struck_off})"
        other = match.matched_name if match.matched_name != match.name else None
        if match.matched_number != match.enterprise_number:
            other = f"{match.matched_name} ({match.matched_number})"
        texts = (match.enterprise_number, match.name, place, other or "")
        rows.add_row(*map(_text, map(sanitize, texts)))
    if not found:
        click.echo("nothing found")
        return
    terminal().print(rows)
    if more:
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
    found = {kind: count for kind, count in counts.items() if count}
    if not found:
        click.echo(f"{key}: changed nothing")
        return
    rows = table("table", "kind", "entities", numbers=["entities"])
    for (name, kind), count in found.items():
        rows.add_row(name, kind, f"{count:,}")
    terminal().print(rows)
    if limit == 0:
        return
    for (name, kind), same in groupby(register.changes(key), key=lambda c: (c.table, c.kind)):
        click.echo(f"\n{name}: {kind}")
        terminal().print(_listed(islice(same, limit)))
        if found[name, kind] > limit:
            click.echo(f"  and {found[name, kind] - limit:,} more: --limit shows them")


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
    """The published register; where it cannot be read any more, the block ends with one line."""
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
