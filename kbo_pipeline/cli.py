"""The command line: parse, one call, print. Heavy imports wait until a command needs them."""

import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kbo_pipeline.commands import copy_register, export
from kbo_pipeline.commands import read as reading
from kbo_pipeline.commands.console import (
    complete_extract,
    extract_key,
    in_ranges,
    pause_told,
    print_json,
    progress_bar,
    report_line,
    sample_bar,
    with_source,
)
from kbo_pipeline.commands.group import Commands
from kbo_pipeline.commands.status import status
from kbo_pipeline.core.errors import KboError

if TYPE_CHECKING:
    from dagster import SensorDefinition

    from kbo_pipeline.core.extracts import ExtractKey
    from kbo_pipeline.core.settings import Settings
    from kbo_pipeline.operate.parts import Part
    from kbo_pipeline.operate.repair.findings import Finding
    from kbo_pipeline.read.types import PublishedExtract


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kbo_pipeline")
def main() -> None:
    """Keeps Belgium's company register (KBO Open Data) complete and current on this machine.

    Settings come from the environment and from a .env file; docs/operating.md lists them.
    """
    from kbo_pipeline.operate.repair.privacy import open_secrets

    if (line := open_secrets()) is not None:
        click.echo(f"kbo: warning: {line}", err=True)


@main.command()
@click.option(
    "--read-only", is_flag=True, help="Let nobody start or change anything in the web UI."
)
@click.option(
    "--only", type=click.Choice(["code", "daemon", "web"]), help="Run one part, for several hosts."
)
def start(read_only: bool, only: "Part | None") -> None:
    """Run the web UI, the daemon and the code location until Ctrl-C.

    With --read-only, for showing the web UI to others, imports go on by themselves all the same.
    With --only, one of the three: the host of the code location has the data, and KBO_CODE_HOST and
    DAGSTER_POSTGRES_URL say on each host where that and PostgreSQL are.
    """
    from kbo_pipeline.core.locks import PAUSED, is_paused
    from kbo_pipeline.core.settings import load_settings
    from kbo_pipeline.fetch.inbox import Inbox
    from kbo_pipeline.operate.processes.start import serve

    settings = load_settings()

    class Recover:
        def __call__(self, *, ended_at: float, is_start: bool) -> "ExtractKey | None":
            from kbo_pipeline.operate.repair.watch import watch

            return watch(settings, report, ended_at=ended_at, is_start=is_start)

        def has_code_server(self, socket: Path) -> bool:
            from kbo_pipeline.operate.repair.watch import has_code_server

            return has_code_server(settings, socket)

    def report(line: str) -> None:
        with suppress(OSError):  # the terminal has gone, and imports go on without it
            click.echo(line)

    if only in ("daemon", "web"):
        serve(settings, report, recover=Recover(), part=only, read_only=read_only)
        return
    if settings.has_account:
        click.echo(f"portal: {settings.portal_url}, asked now and each {settings.poll_seconds} s")
    else:
        missing = settings.account_not_set.replace(", ", " and ")
        click.echo(f"portal: not asked, as {missing} {'are' if ' ' in missing else 'is'} not set")
    Inbox(settings.inbox_dir).prepare()
    click.echo(f"inbox: {settings.inbox_dir}, put ZIPs there")
    if is_paused(settings):
        click.echo(PAUSED)
    serve(settings, report, recover=Recover(), part=only, read_only=read_only)


@main.command("import")
@click.argument("zips", metavar="ZIP...", nargs=-1, required=True, type=click.Path(path_type=Path))
def import_command(zips: tuple[Path, ...]) -> None:
    """Import extracts in number order, through the same jobs as the web UI."""
    from kbo_pipeline.core.order import import_order
    from kbo_pipeline.core.settings import load_settings
    from kbo_pipeline.core.text import counted
    from kbo_pipeline.fetch.meta import read_extract
    from kbo_pipeline.operate.processes.postgres import start_ahead
    from kbo_pipeline.publish.publish import published_state_of

    settings = load_settings()
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
            started = time.monotonic()
            with progress_bar(instance, extract.key), pause_told(settings):
                imported = import_extract(instance, settings, zip_file, extract)
            if imported:
                progress = Progress(instance)
                for warning in progress.warnings(extract.key):
                    click.echo(f"kbo: warning: {extract.key}: {warning}", err=True)
                rejected, aside = progress.rejected_rows(extract.key), ""
                if rejected:
                    aside = f"; {counted(rejected, 'row')} set aside, see the table rejected_row"
                seconds = time.monotonic() - started
                click.echo(f"{extract.key}: published in {seconds:.1f} s{aside}")
            else:
                click.echo(f"{extract.key}: already published: nothing to do")


@main.command()
@click.argument(
    "extract",
    default="latest",
    metavar="[EXTRACT|latest]",
    shell_complete=complete_extract,
)
def fetch(extract: str) -> None:
    """Download an extract from the portal without importing it.

    The latest is the one with the highest number; the Full, if there are both of that number.
    """
    from kbo_pipeline.core.settings import load_settings
    from kbo_pipeline.fetch.zips import fetch_zip, latest_key

    settings = load_settings()
    key = None if extract == "latest" else extract_key(extract)
    with report_line() as report:
        file = fetch_zip(settings, key or latest_key(settings), report)
    click.echo(f"{file}  {file.stat().st_size / 1e6:,.2f} MB")


@main.command()
@click.argument("extract", required=False, shell_complete=complete_extract)
@click.option("--accept-faults", is_flag=True, help="Set its faulty rows aside, however many.")
def retry(extract: str | None, accept_faults: bool) -> None:
    """Re-execute what failed or is missing of an extract, and nothing else.

    With --accept-faults also one that was refused because many of its rows are faulty: these are
    set aside, in rejected_row, and all others are imported.
    """
    from kbo_pipeline.core.settings import load_settings

    settings = load_settings()
    key = None if extract is None else extract_key(extract)
    from kbo_pipeline.commands.runs import retry_extract
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.runs.status import newest_extract

    with open_instance(settings) as instance:
        key = key or newest_extract(instance)
        with progress_bar(instance, key), pause_told(settings):
            done = retry_extract(instance, settings, key, accept_faults=accept_faults)
    click.echo(f"{key}: {in_ranges(done)}" if done else f"{key}: published: nothing to retry")


@main.command()
@click.argument("extract", shell_complete=complete_extract)
@click.option("--accept-loss", is_flag=True, help="Also when it takes away many rows.")
@click.option("--accept-faults", is_flag=True, help="Import it without its faulty rows first.")
def publish(extract: str, accept_loss: bool, accept_faults: bool) -> None:
    """Show an extract to readers, whose batches are all applied.

    The sensors and kbo import do so by themselves. An extract that takes away more of a table
    than KBO_MAX_LOSS_PERCENT, or KBO_MAX_LOSS_PERCENT_FULL, waits until somebody accepts it here.
    """
    from kbo_pipeline.core.settings import load_settings

    settings = load_settings()
    key = extract_key(extract)
    from kbo_pipeline.commands.runs import publish_extract, retry_extract
    from kbo_pipeline.operate.instance import open_instance

    with open_instance(settings) as instance, pause_told(settings):
        if accept_faults:
            done = bool(
                retry_extract(instance, settings, key, accept_faults=True, accept_loss=accept_loss)
            )
        else:
            done = publish_extract(instance, settings, key, accept_loss=accept_loss)
    click.echo(f"{key}: published" if done else f"{key}: already published: nothing to do")


@main.command()
@click.argument("extract", shell_complete=complete_extract)
def cancel(extract: str) -> None:
    """Stop the import of an extract after the running batch.

    What is applied stays applied, unpublished. Nothing goes on by itself; kbo retry does.
    """
    from kbo_pipeline.core.settings import load_settings

    settings = load_settings()
    key = extract_key(extract)
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.runs.cancellation import cancel_extract

    with open_instance(settings) as instance:
        cancel_extract(instance, settings, key)
    click.echo(f"{key}: cancelled; kbo retry {key} goes on")


@main.command()
def pause() -> None:
    """Let nothing new begin: running batches end, then everything waits for kbo resume."""
    from kbo_pipeline.core import locks
    from kbo_pipeline.core.settings import load_settings

    done = locks.pause(load_settings())
    click.echo(locks.PAUSED if done else f"{locks.PAUSED}: nothing to do")


@main.command()
def resume() -> None:
    """Let everything go on that kbo pause holds up."""
    from kbo_pipeline.core import locks
    from kbo_pipeline.core.settings import load_settings

    done = locks.resume(load_settings())
    click.echo("resumed" if done else "not paused: nothing to do")


@main.command()
@click.argument("extract", shell_complete=complete_extract)
def rollback(extract: str) -> None:
    """Undo the newest extract, published or half applied; any other is refused."""
    from kbo_pipeline.core.settings import load_settings

    settings = load_settings()
    key = extract_key(extract)
    from kbo_pipeline.commands.runs import rollback_extract
    from kbo_pipeline.operate.instance import open_instance

    with open_instance(settings) as instance:
        rollback_extract(instance, settings, key)
    click.echo(f"{key}: rolled back; kbo retry {key} imports it again")


@main.command()
@click.option("--from-zips", is_flag=True, help="Make the register anew from the kept ZIPs alone.")
@click.option("--dagster", is_flag=True, help="Make Dagster's embedded database anew.")
def rebuild(from_zips: bool, dagster: bool) -> None:
    """Mend what was damaged or lost: register, published file, Dagster's records.

    Without options it does what kbo start does by itself.

    With --from-zips, history begins with the oldest Full that is kept. With --dagster, the embedded
    PostgreSQL's files are put aside, and a new database is told all that is published; what Dagster
    knew of runs, ticks and cancelled extracts is not in it.
    """
    from kbo_pipeline.core.settings import load_settings

    settings = load_settings()
    from kbo_pipeline.commands.runs import retry_extract
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.lost import drop_lost, read_lost
    from kbo_pipeline.operate.repair.repair import rebuild_from_zips, repair_installation

    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        click.echo(line)

    if dagster:
        say(f"Dagster's database is aside, in {_put_database_aside(settings)}")
    with open_instance(settings) as instance:
        if from_zips:
            with report_line() as report:
                first, last = rebuild_from_zips(instance, settings, report)
            say(f"made anew from the kept ZIPs, {first} to {last}; history begins with {first}")
        repair_installation(instance, settings, say)
        for key in read_lost(settings):
            with progress_bar(instance, key), pause_told(settings):
                done = retry_extract(instance, settings, key)
            drop_lost(settings, key)
            say(f"{key}: {in_ranges(done) or 'published'}")
    if not said:
        click.echo("register, published file and Dagster agree: nothing to rebuild")


def _put_database_aside(settings: "Settings") -> Path:
    from kbo_pipeline.core.errors import NotReadyError, SettingsError
    from kbo_pipeline.operate.processes.postgres import move_aside

    if settings.postgres_url is not None:
        raise SettingsError(
            "DAGSTER_POSTGRES_URL: --dagster is for the embedded PostgreSQL; give yours an empty"
            " database, or a backup, then kbo rebuild"
        )
    aside = move_aside(settings.postgres_dir)
    if aside is None:
        raise NotReadyError(f"{settings.postgres_dir}: no database there; kbo rebuild makes it")
    return aside


def _sensors() -> "Iterable[SensorDefinition]":
    from kbo_pipeline.definitions import defs

    return defs.sensors or ()


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON: source, and data.")
def doctor(as_json: bool) -> None:
    """Look for what is wrong, and say what to do about it.

    Looks at settings, directories, disks, both registers, PostgreSQL, the processes of kbo start,
    sensors, runs, extracts, inbox and leftovers. Changes nothing, and does not ask the portal. Ends
    with 1 when there is an error, and with 0 when there are warnings at most.
    """
    from kbo_pipeline.core.settings import load_settings

    settings = load_settings()
    from kbo_pipeline.operate.repair.doctor import diagnose

    if as_json:
        found = list(diagnose(settings, _sensors))
        print_json(with_source(_newest_published(), [finding.to_json() for finding in found]))
    else:
        found = _print_findings(diagnose(settings, _sensors))
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

    with sample_bar() as progress:
        files = write_sample(
            directory, Sample(enterprises=enterprises, seed=seed), updates, progress
        )
    for file in files:
        click.echo(f"{file}  {file.stat().st_size / 1e6:,.2f} MB")


def _newest_published() -> "PublishedExtract | None":
    """The newest extract that readers have; None where they have none, which is a finding too."""
    from kbo_pipeline.core.settings import load_settings
    from kbo_pipeline.read.register import open_register

    try:
        with open_register(load_settings().database) as register:
            return register.extracts[0]
    except KboError:
        return None


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


main.add_command(status)
main.add_command(reading.show)
main.add_command(reading.find)
main.add_command(reading.changes)
main.add_command(copy_register.copy_register)
main.add_command(export.export)
main.add_command(export.verify)

if __name__ == "__main__":
    main()
