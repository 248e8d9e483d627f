"""`kbo show`, `find`, `changes`, `export`, `verify`, `copy-register`: the published register."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kbo_pipeline.commands.console import (
    bar,
    complete_extract,
    leave_out_pandas,
    print_json,
    table,
    terminal,
    with_source,
)
from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.text import cut, megabytes, sanitize

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kbo_pipeline.publish.verification import Verification
    from kbo_pipeline.read.register import PublishedRegister
    from kbo_pipeline.read.types import Change, Event, Language

_SHOWN = 10  # establishment units, and events, of one enterprise
_PRINTED = 100  # events at once
_LOOK_SECONDS = 1.0
_NEAR = 0.8  # the score from which a hit is near
_LONGEST = 80  # characters of a text before or after a change
_encode = json.JSONEncoder(default=str).encode
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
    """Find enterprises by name, address or number, misspelt ones too; the best matches first.

    TEXT is what you know: words of a name of an enterprise, an establishment unit or a branch, in
    any order and spelling, with its legal form or its place; an address; or a number. It may be
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
        why = register.why_not_forgiving() if text.strip() else None
    if why is not None:
        click.echo(f"kbo: spelling is not forgiven: {why}", err=True)
    has_more, matches = len(matches) > limit, matches[:limit]
    if as_json:
        print_json(with_source(newest, [asdict(match) for match in matches]))
        return
    if not matches:
        click.echo("nothing found")
        return
    if not any(match.is_exact for match in matches):
        near = matches[0].score >= _NEAR
        names = list(dict.fromkeys(sanitize(match.matched or match.name) for match in matches))
        click.echo("nothing is written so; this is near:" if near else _did_you_mean(names))
    rows = table("number", "name", "place", "found as")
    for match in matches:
        place = f"{match.zipcode or ''} {match.municipality or ''}".strip()
        if match.struck_off is not None:
            place += f" (struck off on {match.struck_off})"
        other = match.matched if match.matched not in (match.name, match.matched_number) else None
        if match.matched_number != match.enterprise_number:
            other = f"{other} ({match.matched_number})" if other else match.matched_number
        texts = (match.enterprise_number, match.name, place, other or "")
        rows.add_row(*map(_text, map(sanitize, texts)))
    terminal().print(rows)
    if has_more:
        click.echo("there are more: --limit shows them")
    click.echo(newest.source)


def _did_you_mean(names: list[str]) -> str:
    return f"nothing is near; did you mean {', or '.join(cut(n, _LONGEST) for n in names[:3])}?"


@click.command()
@click.argument("extract", required=False, shell_complete=complete_extract)
@click.option(
    "--limit",
    type=click.IntRange(0),
    help="Of each kind at most, by default 5; with --since of all events, by default all.",
)
@click.option("--all", "show_all", is_flag=True, help="All of each kind.")
@click.option(
    "--lang",
    type=click.Choice(["nl", "fr", "de"]),
    default="nl",
    show_default=True,
    help="Language of meanings, streets and places.",
)
@click.option(
    "--since",
    metavar="CURSOR|EXTRACT",
    shell_complete=complete_extract,
    help="All events after the event with this cursor, or after this extract, in order.",
)
@click.option("--kind", "kinds", multiple=True, help="With --since: of this kind; repeatable.")
@click.option("--table", "tables", multiple=True, help="With --since: in this table; repeatable.")
@click.option("--number", help="With --since: of this entity, or enterprise with its units.")
@click.option("--nace", help="With --since: where an activity has a NACE code that begins so.")
@click.option("--zipcode", help="With --since: where an address has this code.")
@click.option(
    "--follow", is_flag=True, help="With --since: wait for the next extract, until Ctrl-C."
)
@_JSON
def changes(
    extract: str | None,
    limit: int | None,
    show_all: bool,
    lang: "Language",
    since: str | None,
    kinds: tuple[str, ...],
    tables: tuple[str, ...],
    number: str | None,
    nace: str | None,
    zipcode: str | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Count and list what an extract changed, or print the events of all extracts as one feed.

    EXTRACT is a published one, such as 0141-update: its changes are counted and listed by table and
    kind; with --json all of them.

    With --since, each event is a line: with --json a JSON object, of which `cursor` is what --since
    takes to go on behind it. docs/changes.md explains kinds and events.
    """
    filters = {
        "kinds": kinds or None,
        "tables": tables or None,
        "number": number,
        "nace": nace,
        "zipcode": zipcode,
    }
    if since is not None:
        if extract is not None:
            raise click.UsageError("give an EXTRACT or --since, not both")
        _print_events(since, filters, limit, follow=follow, as_json=as_json)
        return
    if follow or any(filters.values()):
        raise click.UsageError("only with --since: it says from where on")
    if extract is None:
        raise click.UsageError("give an EXTRACT, such as 0141-update, or --since one")
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
        most = None if show_all else 5 if limit is None else limit
        _print_changes(register, published.key, counts, most, lang)
    click.echo(published.source)


def _print_events(
    since: str, filters: dict[str, Any], limit: int | None, *, follow: bool, as_json: bool
) -> None:
    """Prints the events behind a cursor or extract; those of each new extract too, if asked to."""
    left = limit
    while True:
        with _register() as register:
            published = register.extracts
            events = islice(register.changes_since(since, **filters), left)
            while some := list(islice(events, _PRINTED)):
                lines = (_encode(e.to_json()) if as_json else _in_line(e) for e in some)
                click.echo("\n".join(lines))  # whole lines, also if we are killed
                since = some[-1].cursor
                left = None if left is None else left - len(some)
            if not follow or left == 0:
                return
            since = register.cursor()  # whatever the filters left out need not be read again
        sys.stdout.flush()
        while True:
            time.sleep(_LOOK_SECONDS)
            with suppress(StorageError), _register() as register:
                if register.extracts != published:
                    break


def _in_line(event: "Event") -> str:
    """An event as one line for people."""
    before, after = (
        " ".join(value for value in (row or {}).values() if value) or "nothing"
        for row in (event.before, event.after)
    )
    what = " ".join(text for text in (event.table, event.kind) if text)
    whose = " ".join(text for text in (event.entity_number, event.name) if text)
    return sanitize("  ".join((event.extract, what, whose, f"{before} → {after}")))


def _print_changes(
    register: "PublishedRegister",
    key: str,
    counts: dict[tuple[str, str], int],
    limit: int | None,
    language: "Language",
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
    by_kind = groupby(register.changes(key), key=lambda change: (change.table, change.kind))
    shown = {kind: list(islice(same, limit)) for kind, same in by_kind}
    words = register.in_words(key, chain.from_iterable(shown.values()), language)
    for (name, kind), changes in shown.items():
        click.echo(f"\n{name}: {kind}")
        terminal().print(_listed(changes, words))
        if counts[name, kind] > len(changes):
            click.echo(f"  and {counts[name, kind] - len(changes):,} more: --all shows them")


def _listed(changes: "list[Change]", words_of: "dict[Change, tuple[str, str]]") -> "RenderableType":
    from rich.table import Table

    from kbo_pipeline.read.changes import NEW, RENAMED, STOPPED

    grid = Table.grid(padding=(0, 2))
    for change in changes:
        both = (change.before, change.after)
        if change.kind != RENAMED:
            both = words_of.get(change, both)
        texts = [cut(sanitize(text or "nothing"), _LONGEST) for text in both]
        words = " → ".join(texts) if change.kind not in (NEW, STOPPED) else ""
        grid.add_row(*map(_text, (f"  {change.entity_number}", sanitize(change.name), words)))
    return grid


@contextmanager
def _register() -> Iterator["PublishedRegister"]:
    """The published register; an error of its file becomes one line."""
    import duckdb

    from kbo_pipeline.read.register import read_register, unreadable

    leave_out_pandas()
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
@click.option(
    "--since",
    metavar="EXTRACT",
    shell_complete=complete_extract,
    help="Write what changed since this extract: 141, or 0141-update.",
)
def export(directory: Path, since: str | None) -> None:
    """Write the current tables as Parquet, into a directory that is complete or absent.

    One file a table, sorted and compressed, the profile of each enterprise among them, and
    manifest.json. KBO_PRIVACY says whether natural persons are in it. An export that is there is
    replaced; anything else stays as it is, and the command fails.

    With --since, a delta: the rows that were added and removed since that extract, net, which
    kbo apply-delta applies to an export of it.
    """
    from kbo_pipeline.read.export import write_delta, write_export
    from kbo_pipeline.read.manifest import MANIFEST, Delta, Export

    settings = load_settings()
    done: Export | Delta
    with bar("reading", None) as report:
        if since is None:
            done = write_export(settings, directory, report=report)
            what = f"extract {done.extract}"
        else:
            done = write_delta(settings, directory, since, report=report)
            what = f"from {done.base.extract} to {done.target.extract}"
    for file in done.tables.values():
        size = f"{file.bytes / 1e3:,.1f} kB" if file.bytes < 1e6 else megabytes(file.bytes)
        rows = f"{file.rows:,} rows"
        if file.added is not None:
            rows = f"{file.added:,} rows added, {file.removed:,} removed"
        click.echo(f"{directory / file.file}  {rows}, {size}")
    click.echo(directory / MANIFEST)
    click.echo(f"{done.about.source}; {what}; KBO_PRIVACY={done.about.privacy}")


@click.command("apply-delta")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("delta", type=click.Path(path_type=Path))
def apply_delta(base: Path, delta: Path) -> None:
    """Turn an export into that of a later extract, by a delta.

    BASE is the directory of an export, DELTA that of a delta which begins at its extract. Only
    these two are read, no register. BASE is replaced at the end, and only if what was written has
    the hash that DELTA promises; otherwise it stays as it is, and the command fails.
    """
    from kbo_pipeline.read.apply_delta import apply_delta

    settings = load_settings()
    with bar("reading", None) as report:
        export, change = apply_delta(settings, base, delta, report=report)
    rows = f"{change.added:,} rows added, {change.removed:,} removed"
    click.echo(f"{base}: {change.base.extract} -> {export.extract}, {rows}")
    click.echo(sanitize(f"{export.about.source}; content {export.state.content_hash}"))


@click.command()
@click.argument("zip_file", metavar="[FULL_ZIP]", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(zip_file: Path | None, as_json: bool) -> None:
    """Compare the published register with the Full of its number, row for row.

    Without FULL_ZIP, the Full of the newest published number is taken from the downloads directory,
    or fetched from the portal for it. With FULL_ZIP, the register is read as it was at its number.
    All rows are compared, whatever KBO_PRIVACY says. The result is kept in the table proof, and as
    a file in proofs/ of the data directory. Exits with 0 only if both are equal.
    """
    from kbo_pipeline.core.errors import NOTHING_PUBLISHED, NotReadyError
    from kbo_pipeline.fetch.archive import read_extract
    from kbo_pipeline.publish.verification import prove
    from kbo_pipeline.read.published import published_state_of

    settings = load_settings()
    if zip_file is None:
        newest = published_state_of(settings.database).newest
        if newest is None:
            raise NotReadyError(f"{settings.database}: {NOTHING_PUBLISHED}")
        number = newest.number
    else:
        number = read_extract(zip_file).key.number
    with bar("reading", None) as report:
        result = prove(
            settings,
            number,
            zip_file=zip_file,
            report=lambda line: click.echo(line, err=True),
            report_tables=report,
        )
    if as_json:
        print_json(result.to_json())
    else:
        _print_verification(result)
    if not result.is_equal:
        if result.published == published_state_of(settings.database).newest:
            click.echo(f"kbo repair {result.published} closes the difference", err=True)
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
