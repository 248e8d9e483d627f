"""`kbo import`, `fetch`, `retry`, `publish`, `cancel`, `rollback`, `repair` and `status`."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kbo_pipeline.commands.console import (
    bar,
    complete_extract,
    echo_file,
    extract_key,
    in_ranges,
    pause_reported,
    print_json,
    progress_bar,
    report_line,
    table,
    terminal,
)
from kbo_pipeline.core import signals
from kbo_pipeline.core.errors import KboError
from kbo_pipeline.core.extracts import ExtractKey, import_order
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.text import counted, duration
from kbo_pipeline.operate.markers import PAUSED, is_paused, read_poll

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from rich.console import Group, RenderableType

    from kbo_pipeline.operate.runs.status import ExtractStatus

_LOOK_SECONDS = 1.0


_BAR_WIDTH = 30


_STYLES = {"completed": "green", "failed": "bold red", "processing": "yellow", "cancelled": "red"}


@click.command("import")
@click.argument("zips", metavar="ZIP...", nargs=-1, required=True, type=click.Path(path_type=Path))
def import_command(zips: tuple[Path, ...]) -> None:
    """Import extracts in number order, through the same jobs as the web UI."""
    from kbo_pipeline.fetch.archive import read_extract
    from kbo_pipeline.operate.processes.postgres import start_ahead
    from kbo_pipeline.read.published import published_state_of

    settings, started = load_settings(), time.monotonic()
    extracts = [(zip_file, read_extract(zip_file)) for zip_file in zips]
    order = import_order(
        {extract.key for _, extract in extracts}, published_state_of(settings.database).newest
    )
    extracts.sort(key=lambda item: order.index(item[1].key))
    if settings.postgres_url is None:  # beside the imports that follow, which take two seconds
        start_ahead(settings.postgres_dir)
    from kbo_pipeline.commands.runs import import_extract
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.runs.progress import Progress

    with open_instance(settings) as instance:
        for zip_file, extract in extracts:
            with progress_bar(instance, settings, extract.key), pause_reported(settings):
                imported = import_extract(instance, settings, zip_file, extract)
            if not imported:
                click.echo(f"{extract.key}: already published: nothing to do")
                continue
            progress = Progress(instance)
            for warning in progress.warnings(extract.key):
                click.echo(f"kbo: warning: {extract.key}: {warning}", err=True)
            rejected, aside = progress.rejected_rows(extract.key), ""
            if rejected:
                aside = f"; {counted(rejected, 'row')} set aside, see the table rejected_row"
            seconds, started = time.monotonic() - started, time.monotonic()
            click.echo(f"{extract.key}: published in {seconds:.1f} s{aside}")
    _build_index(settings)


def _build_index(settings: Settings) -> None:
    """Makes the search index; readers have the extracts, even if that fails."""
    from kbo_pipeline.read.index import build_index

    try:
        with bar("search index", None) as report:
            build_index(settings, report=report)
    except KboError as error:
        click.echo(f"kbo: warning: no search index: {error}; then kbo index", err=True)


@click.command()
@click.argument(
    "extract", default="latest", metavar="[EXTRACT|latest]", shell_complete=complete_extract
)
def fetch(extract: str) -> None:
    """Download an extract from the portal without importing it.

    The latest has the highest number; of a Full and an Update with that number, it is the Full.
    """
    from kbo_pipeline.fetch.zips import fetch_zip, latest_key

    settings = load_settings()
    key = None if extract == "latest" else extract_key(extract)
    with report_line() as report:
        file = fetch_zip(settings, key or latest_key(settings), report)
    echo_file(file)


@click.command()
@click.argument("extract", required=False, shell_complete=complete_extract)
@click.option("--accept-faults", is_flag=True, help="Set its faulty rows aside, however many.")
def retry(extract: str | None, accept_faults: bool) -> None:
    """Re-execute what failed or is missing of an extract, and nothing else.

    --accept-faults also imports an extract that was refused for its many faulty rows: these are set
    aside in rejected_row, and all others are imported.
    """
    settings = load_settings()
    key = None if extract is None else extract_key(extract)
    from kbo_pipeline.commands.runs import retry_extract
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.runs.status import newest_extract

    with open_instance(settings) as instance:
        key = key or newest_extract(instance)
        with progress_bar(instance, settings, key), pause_reported(settings):
            done = retry_extract(instance, settings, key, accept_faults=accept_faults)
    click.echo(f"{key}: {in_ranges(done)}" if done else f"{key}: published: nothing to retry")


@click.command()
@click.argument("extract", shell_complete=complete_extract)
@click.option("--accept-loss", is_flag=True, help="Even if it removes many rows.")
@click.option("--accept-faults", is_flag=True, help="Import it without its faulty rows first.")
def publish(extract: str, accept_loss: bool, accept_faults: bool) -> None:
    """Publish an extract whose batches are all applied.

    The sensors and kbo import do so by themselves. An extract that removes more of a table than
    KBO_MAX_LOSS_PERCENT, or KBO_MAX_LOSS_PERCENT_FULL, waits until it is accepted here.
    """
    settings = load_settings()
    key = extract_key(extract)
    from kbo_pipeline.commands.runs import publish_extract, retry_extract
    from kbo_pipeline.operate.instance import open_instance

    with open_instance(settings) as instance, pause_reported(settings):
        if accept_faults:
            done = bool(
                retry_extract(instance, settings, key, accept_faults=True, accept_loss=accept_loss)
            )
        else:
            done = publish_extract(instance, settings, key, accept_loss=accept_loss)
    click.echo(f"{key}: published" if done else f"{key}: already published: nothing to do")


@click.command()
@click.argument("extract", shell_complete=complete_extract)
def cancel(extract: str) -> None:
    """Stop the import of an extract after the running batch.

    What is applied stays applied, unpublished, until kbo retry continues the import.
    """
    settings = load_settings()
    key = extract_key(extract)
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.runs.cancellation import cancel_extract

    with open_instance(settings) as instance:
        cancel_extract(instance, settings, key)
    click.echo(f"{key}: cancelled; kbo retry {key} continues it")


@click.command()
@click.argument("extract", shell_complete=complete_extract)
def rollback(extract: str) -> None:
    """Undo the newest extract, published or half applied; any other is refused."""
    settings = load_settings()
    key = extract_key(extract)
    from kbo_pipeline.commands.runs import rollback_extract
    from kbo_pipeline.operate.instance import open_instance

    with open_instance(settings) as instance:
        rollback_extract(instance, settings, key)
    click.echo(f"{key}: rolled back; kbo retry {key} imports it again")


@click.command()
@click.argument("extract", shell_complete=complete_extract)
@click.option("--accept-faults", is_flag=True, help="Set faulty rows of the Full aside.")
def repair(extract: str, accept_faults: bool) -> None:
    """Close what kbo verify has found different, by the Full of that number.

    EXTRACT is the newest published one, of which the last comparison must have found a difference.
    Its Full is imported in its place: what differs is closed by versions dated with its number,
    which are changes of the kind corrected. kbo rollback undoes it like any other. Then both are
    compared again. Exits with 0 only if they are equal.
    """
    settings = load_settings()
    key = extract_key(extract)
    full = ExtractKey(key.number, "full")
    from kbo_pipeline.commands.runs import repair_extract
    from kbo_pipeline.operate.instance import open_instance

    with (
        open_instance(settings) as instance,
        progress_bar(instance, settings, full),
        pause_reported(settings),
    ):
        proof = repair_extract(
            instance,
            settings,
            key,
            accept_faults=accept_faults,
            report=lambda line: click.echo(line, err=True),
        )
    click.echo(str(proof))
    if not proof.is_equal:
        click.echo(
            f"kbo: {proof.published}: still differs; kbo rebuild --from-zips makes it anew",
            err=True,
        )
        sys.exit(1)


@click.command()
@click.argument("extract", required=False, shell_complete=complete_extract)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--watch",
    is_flag=True,
    help="Keep showing it until it is published, failed or cancelled, or until Ctrl-C.",
)
def status(extract: str | None, as_json: bool, watch: bool) -> None:
    """Show how far an extract is: overall, by table, failed batches.

    --watch shows bars that fill; without a terminal, a line for each step. It exits with 0 when the
    extract is published, and with 1 when it failed or was cancelled. With --json, it prints one
    object a line.
    """
    settings = load_settings()
    key = None if extract is None else extract_key(extract)
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.runs.status import newest_extract, read_status

    with open_instance(settings) as instance:
        if not as_json:
            _print_circumstances(instance, settings)
        key = key or newest_extract(instance)
        if not watch:
            now = read_status(instance, settings, key)
            if as_json:
                print_json(now.to_json())
            else:
                terminal().print(_rendered(now))
            return
        last = _watch(instance, settings, key, as_json=as_json)
    if last.status != "completed":
        why = last.error or last.words
        step = "" if "; kbo " in why else f"; kbo retry {key} continues it"
        click.echo(f"kbo: {key}: {last.status}: {why}{step}", err=True)
        sys.exit(1)


def _print_circumstances(instance: "DagsterInstance", settings: Settings) -> None:
    """Prints what concerns all extracts: a pause, the last portal poll, the last proof."""
    from kbo_pipeline.read.published import last_proof

    if is_paused(settings):
        click.echo(PAUSED)
    poll = read_poll(instance)
    if poll is not None:
        asked = datetime.fromtimestamp(poll.asked_at).strftime("%Y-%m-%d %H:%M:%S")
        click.echo(f"portal, asked at {asked}: {poll}")
    proof = last_proof(settings)
    if proof is not None:
        click.echo(f"proof: {proof}")


def _watch(
    instance: "DagsterInstance", settings: Settings, key: ExtractKey, *, as_json: bool
) -> "ExtractStatus":
    """Shows an extract until its import has ended; returns its last status."""
    from kbo_pipeline.operate.runs.status import is_over, read_status

    try:
        with _shower(as_json=as_json) as show:
            while True:
                now = read_status(instance, settings, key)
                show(now)
                if is_over(instance, now):
                    return now
                time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:  # ends the watching, and not the import
        signals.ignore_further()
        sys.exit(130)


@contextmanager
def _shower(*, as_json: bool) -> "Iterator[Callable[[ExtractStatus], None]]":
    """Yields a function that shows a status: as bars that fill, or as a line when it changes."""
    from rich.live import Live

    console = terminal()
    if console.is_terminal and not as_json:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda now: live.update(_rendered(now), refresh=True)
        return
    last = ""

    def show(now: "ExtractStatus") -> None:
        nonlocal last
        line = json.dumps(now.to_json()) if as_json else _headline(now, with_time=False)
        if line != last:
            last = line
            click.echo(line)

    yield show


def _headline(now: "ExtractStatus", *, with_time: bool = True) -> str:
    is_timed = with_time and now.seconds_left is not None
    left = f", about {duration(now.seconds_left or 0.0)} left" if is_timed else ""
    return f"{now.job_id}: {now.status} ({now.words}), {now.percentage}%{left}"


def _rendered(now: "ExtractStatus") -> "Group":
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    parts: list[RenderableType] = [Text(_headline(now), style="bold")]
    rows = table("table", "batches", "", "status")
    for name, progress in now.tables.items():
        done = f"{progress.completed}/{progress.total}"
        bar = ProgressBar(progress.total, progress.completed, width=_BAR_WIDTH)
        state = Text(progress.status, style=_STYLES.get(progress.status, ""))
        rows.add_row(name, done, bar, state)
    if now.tables:
        parts.append(rows)
    for label, place in (("current", now.current_batch), ("next", now.next_batch)):
        if place:
            parts.append(Text(f"{label} batch: {place.batch} ({place.table}, {place.operation})"))
    if now.failed_batches:
        numbers = sorted({place.batch for place in now.failed_batches})
        named = ", ".join(map(str, numbers))
        parts.append(Text(f"failed batches: {named}; kbo retry {now.job_id}"))
    if now.operation:
        parts.append(Text(f"now: {now.operation}"))
    if now.rejected_rows:
        parts.append(Text(f"rows set aside: {now.rejected_rows:,}; see the table rejected_row"))
    if now.error:
        parts.append(Text(f"error: {now.error}"))
    return Group(*parts)
