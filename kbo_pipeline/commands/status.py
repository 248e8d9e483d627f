"""`kbo status`: how far an extract is, once or for as long as it goes on."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import click

from kbo_pipeline.commands.console import complete_extract, extract_key, print_json, table, terminal
from kbo_pipeline.core import signals
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.text import duration

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from rich.console import Group, RenderableType

    from kbo_pipeline.core.extracts import ExtractKey
    from kbo_pipeline.operate.runs.status import ExtractStatus

_LOOK_SECONDS = 1.0
_BAR_WIDTH = 30
_STYLES = {"completed": "green", "failed": "bold red", "processing": "yellow", "cancelled": "red"}


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
        if watch:
            found = _watch(instance, key, as_json=as_json)
        else:
            found = read_status(instance, key)
            _print(found, as_json=as_json)
    if watch and found.status != "completed":
        why = found.error or found.stage
        step = "" if "; kbo " in why else f"; kbo retry {key} continues it"
        click.echo(f"kbo: {key}: {found.status}: {why}{step}", err=True)
        sys.exit(1)


def _print_circumstances(instance: "DagsterInstance", settings: Settings) -> None:
    """What holds for all extracts: whether all is paused, and what the portal has said."""
    from kbo_pipeline.operate.markers import PAUSED, is_paused, read_poll

    if is_paused(settings):
        click.echo(PAUSED)
    poll = read_poll(instance)
    if poll is not None:
        asked = datetime.fromtimestamp(poll.asked_at).strftime("%Y-%m-%d %H:%M:%S")
        click.echo(f"portal, asked at {asked}: {poll}")


def _watch(instance: "DagsterInstance", key: "ExtractKey", *, as_json: bool) -> "ExtractStatus":
    """Shows an extract until nothing goes on by itself any more; returns how it stands then."""
    from kbo_pipeline.operate.runs.status import is_over, read_status

    try:
        with _shower(as_json=as_json) as show:
            while True:
                found = read_status(instance, key)
                show(found)
                if is_over(instance, found):
                    return found
                time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:  # nothing is stopped by it: who looked has seen enough
        signals.ignore_further()
        sys.exit(130)


@contextmanager
def _shower(*, as_json: bool) -> "Iterator[Callable[[ExtractStatus], None]]":
    """Yields what shows a status: bars in their place, or lines that tell what is new."""
    from rich.live import Live

    console = terminal()
    if console.is_terminal and not as_json:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda found: live.update(_shown(found), refresh=True)
        return
    told: list[str] = []

    def tell(found: "ExtractStatus") -> None:
        line = json.dumps(found.to_json()) if as_json else _headline(found, with_time=False)
        if told[-1:] != [line]:
            told.append(line)
            click.echo(line)

    yield tell


def _print(found: "ExtractStatus", *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    terminal().print(_shown(found))


def _headline(found: "ExtractStatus", *, with_time: bool = True) -> str:
    is_timed = with_time and found.seconds_left is not None
    left = f", about {duration(found.seconds_left or 0.0)} left" if is_timed else ""
    return f"{found.job_id}: {found.status} ({found.stage}), {found.percentage}%{left}"


def _shown(found: "ExtractStatus") -> "Group":
    """All that is known of an extract, as rich renders it."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    parts: list[RenderableType] = [Text(_headline(found), style="bold")]
    rows = table("table", "batches", "", "status")
    for name, progress in found.tables.items():
        done = f"{progress.completed}/{progress.total}"
        bar = ProgressBar(progress.total, progress.completed, width=_BAR_WIDTH)
        state = Text(progress.status, style=_STYLES.get(progress.status, ""))
        rows.add_row(name, done, bar, state)
    if found.tables:
        parts.append(rows)
    for label, place in (("current", found.current_batch), ("next", found.next_batch)):
        if place:
            parts.append(Text(f"{label} batch: {place.batch} ({place.table}, {place.operation})"))
    if found.failed_batches:
        numbers = sorted({place.batch for place in found.failed_batches})
        named = ", ".join(map(str, numbers))
        parts.append(Text(f"failed batches: {named}; kbo retry {found.job_id}"))
    if found.rejected_rows:
        parts.append(Text(f"rows set aside: {found.rejected_rows:,}; see the table rejected_row"))
    if found.error:
        parts.append(Text(f"error: {found.error}"))
    return Group(*parts)
