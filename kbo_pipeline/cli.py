"""The command line: parse, one call, print. Heavy imports wait until a command needs them."""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kbo_pipeline import interrupts
from kbo_pipeline.commands import exporting
from kbo_pipeline.errors import KboError

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from rich.console import Console

    from kbo_pipeline.extracts import ExtractKey
    from kbo_pipeline.findings import Finding
    from kbo_pipeline.settings import Settings
    from kbo_pipeline.status import ExtractStatus


class _Commands(click.Group):
    """Turns errors that are raised on purpose, Ctrl-C and SIGTERM into one line and a code."""

    def invoke(self, ctx: click.Context) -> Any:
        interrupts.listen()
        try:
            return super().invoke(ctx)
        except KboError as error:
            click.echo(f"kbo: {' '.join(str(error).split())}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            interrupts.ignore_further()
            click.echo("kbo: stopped; kbo status says how far it came", err=True)
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kbo_pipeline")
def main() -> None:
    """Keeps Belgium's company register (KBO Open Data) complete and current on this machine.

    Settings come from the environment and from a .env file; see the README.
    """
    from kbo_pipeline.privacy import open_secrets

    if (line := open_secrets()) is not None:
        click.echo(f"kbo: warning: {line}", err=True)


@main.command()
@click.option(
    "--read-only", is_flag=True, help="Let nobody start or change anything in the web UI."
)
def start(read_only: bool) -> None:
    """Run the web UI, the daemon and the code location until Ctrl-C.

    With --read-only, for showing the web UI to others, imports go on by themselves all the same.
    """
    from kbo_pipeline.inbox import Inbox
    from kbo_pipeline.pausing import PAUSED, is_paused
    from kbo_pipeline.serving import serve
    from kbo_pipeline.settings import load_settings

    settings = load_settings()

    def recover(*, ended_at: float, is_start: bool) -> "ExtractKey | None":
        from kbo_pipeline.defs.cancelling import note_cancelled
        from kbo_pipeline.defs.importing import open_instance
        from kbo_pipeline.defs.mending import mend, next_lost
        from kbo_pipeline.defs.recovery import (
            end_dead_runs,
            end_dead_runs_of_commands,
            resume_retries,
        )
        from kbo_pipeline.errors import StorageError
        from kbo_pipeline.witness import mark_suspect, suspect_file

        with open_instance(settings) as instance:
            if is_start or suspect_file(settings).exists():
                try:
                    mend(instance, settings, click.echo)
                except StorageError as error:  # somebody is at work: a look later will do
                    mark_suspect(settings)
                    click.echo(f"not compared yet: {error}")
            end_dead_runs_of_commands(instance, settings)
            ended = end_dead_runs(instance, settings, ended_at=ended_at)
            for run_id in (*ended, *resume_retries(instance)):
                click.echo(f"run {run_id}: its process has died; Dagster takes it up again")
            note_cancelled(instance, settings)
            return next_lost(instance, settings)

    if settings.has_account:
        click.echo(f"portal: {settings.portal_url}, asked now and each {settings.poll_seconds} s")
    else:
        click.echo("portal: not asked, as KBO_USERNAME and KBO_PASSWORD are not set")
    Inbox(settings.inbox_dir).prepare()
    click.echo(f"inbox: {settings.inbox_dir}, put ZIPs there")
    if is_paused(settings):
        click.echo(PAUSED)
    serve(settings, click.echo, recover=recover, read_only=read_only)


@main.command("import")
@click.argument("zips", metavar="ZIP...", nargs=-1, required=True, type=click.Path(path_type=Path))
def import_command(zips: tuple[Path, ...]) -> None:
    """Import extracts in number order, through the same jobs as the web UI."""
    from kbo_pipeline.extracts import read_extract
    from kbo_pipeline.settings import load_settings

    settings = load_settings()
    extracts = sorted(
        ((zip_file, read_extract(zip_file)) for zip_file in zips),
        key=lambda item: (item[1].key.number, item[1].key.type),
    )
    from kbo_pipeline.defs.importing import import_extract, open_instance

    with open_instance(settings) as instance:
        for zip_file, extract in extracts:
            started = time.monotonic()
            with _progress_bar(instance, extract.key), _pause_told(settings):
                imported = import_extract(instance, settings, zip_file, extract)
            if imported:
                click.echo(f"{extract.key}: published in {time.monotonic() - started:.1f} s")
            else:
                click.echo(f"{extract.key}: already published: nothing to do")


@main.command()
@click.argument("extract", default="latest", metavar="[EXTRACT|latest]")
def fetch(extract: str) -> None:
    """Download an extract from the portal without importing it.

    The latest is the one with the highest number; the Full, if there are both of that number.
    """
    from kbo_pipeline.fetching import fetch_zip, latest_key
    from kbo_pipeline.settings import load_settings

    key, settings = None if extract == "latest" else _extract_key(extract), load_settings()
    with _report_line() as report:
        file = fetch_zip(settings, key or latest_key(settings), report)
    click.echo(f"{file}  {file.stat().st_size / 1e6:,.2f} MB")


@main.command()
@click.argument("extract", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(extract: str | None, as_json: bool) -> None:
    """Show how far an extract is: overall, by table, failed batches."""
    from kbo_pipeline.settings import load_settings

    key, settings = _extract_key(extract), load_settings()
    from kbo_pipeline.defs.importing import open_instance
    from kbo_pipeline.defs.polling import read_poll
    from kbo_pipeline.defs.status import newest_extract, read_status
    from kbo_pipeline.pausing import PAUSED, is_paused

    with open_instance(settings) as instance:
        if is_paused(settings) and not as_json:
            click.echo(PAUSED)
        poll = read_poll(instance)
        if poll is not None and not as_json:
            asked = datetime.fromtimestamp(poll.asked_at).strftime("%Y-%m-%d %H:%M:%S")
            click.echo(f"portal, asked at {asked}: {poll}")
        found = read_status(instance, key or newest_extract(instance))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_status(found)


@main.command()
@click.argument("extract", required=False)
def retry(extract: str | None) -> None:
    """Re-execute what failed or is missing of an extract, and nothing else."""
    from kbo_pipeline.settings import load_settings

    key, settings = _extract_key(extract), load_settings()
    from kbo_pipeline.defs.importing import open_instance, retry_extract
    from kbo_pipeline.defs.status import newest_extract

    with open_instance(settings) as instance:
        key = key or newest_extract(instance)
        with _progress_bar(instance, key), _pause_told(settings):
            done = retry_extract(instance, settings, key)
    click.echo(f"{key}: {', '.join(done)}" if done else f"{key}: published: nothing to retry")


@main.command()
@click.argument("extract")
@click.option("--accept-loss", is_flag=True, help="Also when it takes away many rows.")
def publish(extract: str, accept_loss: bool) -> None:
    """Show an extract to readers, whose batches are all applied.

    The sensors and kbo import do so by themselves. An Update that takes away more of a table than
    KBO_MAX_LOSS_PERCENT waits until somebody accepts it here.
    """
    from kbo_pipeline.extracts import ExtractKey
    from kbo_pipeline.settings import load_settings

    key, settings = ExtractKey.parse(extract), load_settings()
    from kbo_pipeline.defs.importing import open_instance, publish_extract

    with open_instance(settings) as instance, _pause_told(settings):
        done = publish_extract(instance, settings, key, accept_loss=accept_loss)
    click.echo(f"{key}: published" if done else f"{key}: already published: nothing to do")


@main.command()
@click.argument("extract")
def cancel(extract: str) -> None:
    """Stop the import of an extract after the running batch.

    What is applied stays applied, unpublished. Nothing goes on by itself; kbo retry does.
    """
    from kbo_pipeline.extracts import ExtractKey
    from kbo_pipeline.settings import load_settings

    key, settings = ExtractKey.parse(extract), load_settings()
    from kbo_pipeline.defs.cancelling import cancel_extract
    from kbo_pipeline.defs.importing import open_instance

    with open_instance(settings) as instance:
        cancel_extract(instance, settings, key)
    click.echo(f"{key}: cancelled; kbo retry {key} goes on")


@main.command()
def pause() -> None:
    """Let nothing new begin: running batches end, then everything waits for kbo resume."""
    from kbo_pipeline import pausing
    from kbo_pipeline.settings import load_settings

    done = pausing.pause(load_settings())
    click.echo(pausing.PAUSED if done else f"{pausing.PAUSED}: nothing to do")


@main.command()
def resume() -> None:
    """Let everything go on that kbo pause holds up."""
    from kbo_pipeline import pausing
    from kbo_pipeline.settings import load_settings

    done = pausing.resume(load_settings())
    click.echo("resumed" if done else "not paused: nothing to do")


@main.command()
@click.argument("extract")
def rollback(extract: str) -> None:
    """Undo the newest extract, published or half applied; any other is refused."""
    from kbo_pipeline.extracts import ExtractKey
    from kbo_pipeline.settings import load_settings

    key, settings = ExtractKey.parse(extract), load_settings()
    from kbo_pipeline.defs.importing import open_instance, rollback_extract

    with open_instance(settings) as instance:
        rollback_extract(instance, settings, key)
    click.echo(f"{key}: rolled back; kbo retry {key} imports it again")


@main.command()
@click.option("--from-zips", is_flag=True, help="Make the register anew from the kept ZIPs alone.")
def rebuild(from_zips: bool) -> None:
    """Mend what was damaged or lost: register, published file, Dagster's records.

    kbo start does so by itself, but for --from-zips: history then begins with the oldest kept Full.
    """
    from kbo_pipeline.settings import load_settings

    settings = load_settings()
    from kbo_pipeline.defs.importing import open_instance, retry_extract
    from kbo_pipeline.defs.mending import mend, rebuild_from_zips
    from kbo_pipeline.witness import drop_lost, read_lost

    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        click.echo(line)

    with open_instance(settings) as instance:
        if from_zips:
            with _report_line() as report:
                first, last = rebuild_from_zips(instance, settings, report)
            say(f"made anew from the kept ZIPs, {first} to {last}; history begins with {first}")
        mend(instance, settings, say)
        for key in read_lost(settings):
            with _progress_bar(instance, key), _pause_told(settings):
                done = retry_extract(instance, settings, key)
            drop_lost(settings, key)
            say(f"{key}: {', '.join(done) or 'published'}")
    if not said:
        click.echo("register, published file and Dagster agree: nothing to rebuild")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Look for what is wrong, and say what to do about it.

    Looks at settings, directories, disks, both registers, PostgreSQL, the processes of kbo start,
    sensors, runs, extracts, inbox and leftovers. Changes nothing, and does not ask the portal. Ends
    with 1 when there is an error, and with 0 when there are warnings at most.
    """
    from kbo_pipeline.settings import load_settings

    settings = load_settings()
    from kbo_pipeline.defs.doctor import diagnose

    if as_json:
        found = list(diagnose(settings))
        click.echo(json.dumps([finding.to_json() for finding in found], indent=2))
    else:
        found = _print_findings(diagnose(settings))
    if any(finding.severity == "error" for finding in found):
        sys.exit(1)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--enterprises", default=2000, show_default=True, help="Size: 50 to 2,000,000.")
@click.option("--updates", default=5, show_default=True, help="Updates after the Full.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same bytes.")
def sample(directory: Path, enterprises: int, updates: int, seed: int) -> None:
    """Write made-up extracts: a Full, Updates after it, and a later Full."""
    from kbo_pipeline.sample import Sample, write_sample

    with _sample_bar() as progress:
        files = write_sample(
            directory, Sample(enterprises=enterprises, seed=seed), updates, progress
        )
    for file in files:
        click.echo(f"{file}  {file.stat().st_size / 1e6:,.2f} MB")


main.add_command(exporting.export)
main.add_command(exporting.verify)


def _extract_key(text: str | None) -> "ExtractKey | None":
    from kbo_pipeline.extracts import ExtractKey

    return None if text is None else ExtractKey.parse(text)


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def _report_line() -> Iterator[Callable[[str], None]]:
    """Shows the newest line of progress; all of them where nobody can see one change."""
    from rich.markup import escape

    console = _console()
    if not console.is_terminal:
        yield lambda line: click.echo(line, err=True)
        return
    with console.status("") as shown:
        yield lambda line: shown.update(escape(line))


@contextmanager
def _sample_bar() -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import Progress

    with Progress(console=_console(), transient=True) as bar:
        task = bar.add_task("writing")

        def show(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        yield show


@contextmanager
def _pause_told(settings: "Settings") -> Iterator[None]:
    """Says once that the work of the caller waits, when `kbo pause` holds it up."""
    from kbo_pipeline.pausing import PAUSED, is_paused

    ended = threading.Event()

    def look() -> None:
        while not is_paused(settings):
            if ended.wait(0.5):
                return
        click.echo(f"kbo: {PAUSED}", err=True)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _progress_bar(instance: "DagsterInstance", key: "ExtractKey") -> Iterator[None]:
    """Shows the progress that the instance's storage knows, while the caller does the work."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = _console()
    if not console.is_terminal:
        yield
        return
    from kbo_pipeline.defs.status import read_status
    from kbo_pipeline.errors import NotReadyError

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    ended = threading.Event()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{key} staging", total=None)

        def follow() -> None:
            while not ended.wait(0.5):
                try:
                    now = read_status(instance, key)
                except NotReadyError:
                    continue  # the first run has not registered the extract yet
                total = now.total or None
                bar.update(
                    task, description=f"{key} {now.stage}", completed=now.completed, total=total
                )

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def _print_status(found: "ExtractStatus") -> None:
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    console = Console()
    left = f", about {found.seconds_left:.0f} s left" if found.seconds_left is not None else ""
    console.print(
        f"[bold]{found.job_id}[/bold]: {found.status} ({found.stage}), {found.percentage}%{left}"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("table", "batches", "", "status"):
        table.add_column(name)
    for name, progress in found.tables.items():
        bar = ProgressBar(total=progress.total, completed=progress.completed, width=30)
        table.add_row(name, f"{progress.completed}/{progress.total}", bar, progress.status)
    if found.tables:
        console.print(table)
    for label, place in (("current", found.current_batch), ("next", found.next_batch)):
        if place:
            console.print(f"{label} batch: {place.batch} ({place.table}, {place.operation})")
    if found.failed_batches:
        numbers = sorted({place.batch for place in found.failed_batches})
        console.print(f"failed batches: {', '.join(map(str, numbers))}; kbo retry {found.job_id}")
    if found.error:
        console.print(f"error: {found.error}", markup=False)


def _print_findings(findings: "Iterable[Finding]") -> "list[Finding]":
    """Prints a table that grows by a row a finding; returns the findings."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "warning": "yellow", "error": "bold red"}
    found = []
    table = Table(box=None, pad_edge=False)
    for name in ("", "what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    console = Console()
    with Live(table, console=console, vertical_overflow="visible"):
        for finding in findings:
            words = (finding.severity, finding.subject, finding.text, finding.remedy or "")
            table.add_row(Text(words[0], styles[words[0]]), *map(Text, words[1:]))
            found.append(finding)
    if not console.is_terminal:
        click.echo()  # Live ends its last line on terminals only
    counts = Counter(str(finding.severity) for finding in found)
    click.echo(f"errors: {counts['error']}, warnings: {counts['warning']}, ok: {counts['ok']}")
    return found


if __name__ == "__main__":
    main()
