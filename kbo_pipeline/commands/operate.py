"""`kbo start`, `pause`, `resume`, `rebuild`, `doctor` and `sample`: the installation as a whole."""

import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kbo_pipeline.commands.console import (
    bar,
    echo_file,
    in_ranges,
    pause_reported,
    print_json,
    progress_bar,
    report_line,
    table,
    terminal,
    with_source,
)
from kbo_pipeline.core.errors import KboError, NotReadyError, SettingsError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.operate import markers

if TYPE_CHECKING:
    from dagster import SensorDefinition

    from kbo_pipeline.operate.repair.findings import Finding
    from kbo_pipeline.operate.runtime import Part
    from kbo_pipeline.read.types import PublishedExtract

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@click.command()
@click.option(
    "--read-only",
    is_flag=True,
    help="Make the web UI read-only: nothing can be started or changed in it.",
)
@click.option(
    "--only", type=click.Choice(["code", "daemon", "web"]), help="Run one part, for several hosts."
)
def start(read_only: bool, only: "Part | None") -> None:
    """Run the web UI, the daemon and the code location until Ctrl-C.

    --read-only is for showing the web UI to others; imports still run by themselves. --only runs
    one of the three: the data is on the host of the code location, and KBO_CODE_HOST and
    DAGSTER_POSTGRES_URL say on each host where that and PostgreSQL are.
    """
    from kbo_pipeline.fetch.inbox import Inbox
    from kbo_pipeline.operate.processes.start import serve

    settings = load_settings()

    def recover(ended_at: float, is_start: bool) -> ExtractKey | None:
        from kbo_pipeline.operate.repair.repair import watch

        return watch(settings, report, ended_at=ended_at, is_start=is_start)

    def answers(socket: Path) -> bool:
        from kbo_pipeline.operate.repair.repair import has_code_server

        return has_code_server(settings, socket)

    def report(line: str) -> None:
        with suppress(OSError):  # imports continue when the terminal has gone
            click.echo(line)

    if only not in ("daemon", "web"):
        asked = f"portal: {settings.portal_url}, asked now and every {settings.poll_seconds} s"
        missing = settings.account_not_set.replace(", ", " and ")
        unset = f"portal: not asked, because {missing} {'are' if ' ' in missing else 'is'} not set"
        click.echo(asked if settings.has_account else unset)
        Inbox(settings.inbox_dir).prepare()
        click.echo(f"inbox: {settings.inbox_dir}, put ZIPs there")
        if markers.is_paused(settings):
            click.echo(markers.PAUSED)
    serve(settings, report, recover, answers, part=only, read_only=read_only)


@click.command()
def pause() -> None:
    """Start nothing new: running batches finish, then everything waits for kbo resume."""
    done = markers.pause(load_settings())
    click.echo(markers.PAUSED if done else f"{markers.PAUSED}: nothing to do")


@click.command()
def resume() -> None:
    """Continue everything that kbo pause has stopped."""
    done = markers.resume(load_settings())
    click.echo("resumed" if done else "not paused: nothing to do")


@click.command()
@click.option("--from-zips", is_flag=True, help="Recreate the register from the kept ZIPs alone.")
@click.option("--dagster", is_flag=True, help="Recreate Dagster's embedded database.")
def rebuild(from_zips: bool, dagster: bool) -> None:
    """Repair what was damaged or lost: register, published file, Dagster's records.

    Without options it does what kbo start does by itself.

    With --from-zips, history begins with the oldest Full that is kept. With --dagster, the files of
    the embedded PostgreSQL are moved aside, and all that is published is recorded in a new
    database; runs, ticks and cancellations are not in it.
    """
    settings = load_settings()
    from kbo_pipeline.commands.runs import retry_extract
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.repair.repair import rebuild_from_zips, repair_installation

    is_changed = False

    def say(line: str) -> None:
        nonlocal is_changed
        is_changed = True
        click.echo(line)

    if dagster:
        say(f"Dagster's database was moved aside, to {_put_database_aside(settings)}")
    with open_instance(settings) as instance:
        if from_zips:
            with report_line() as report:
                first, last = rebuild_from_zips(instance, settings, report)
            say(f"recreated from the kept ZIPs, {first} to {last}; history begins with {first}")
        repair_installation(instance, settings, say)
        for key in markers.read_lost(settings):
            with progress_bar(instance, settings, key), pause_reported(settings):
                done = retry_extract(instance, settings, key)
            markers.drop_lost(settings, key)
            say(f"{key}: {in_ranges(done) or 'published'}")
    if not is_changed:
        click.echo("register, published file and Dagster agree: nothing to rebuild")


def _put_database_aside(settings: Settings) -> Path:
    from kbo_pipeline.operate.processes.postgres import move_aside

    if settings.postgres_url is not None:
        raise SettingsError(
            "DAGSTER_POSTGRES_URL: --dagster is for the embedded PostgreSQL; give yours an empty"
            " database, or a backup, then kbo rebuild"
        )
    aside = move_aside(settings.postgres_dir)
    if aside is None:
        raise NotReadyError(f"{settings.postgres_dir}: no database there; kbo rebuild creates it")
    return aside


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON: source, and data.")
def doctor(as_json: bool) -> None:
    """Report what is wrong, and what to do about it.

    Checks settings, directories, disks, both registers, PostgreSQL, the processes of kbo start,
    sensors, runs, extracts, inbox and leftovers. Changes nothing, and does not contact the portal.
    Exits with 1 if there is an error, and with 0 if there are only warnings.
    """
    settings = load_settings()
    from kbo_pipeline.operate.repair.doctor import diagnose

    if as_json:
        findings = list(diagnose(settings, _sensors))
        print_json(with_source(_newest_published(settings), [f.to_json() for f in findings]))
    else:
        findings = _print_findings(diagnose(settings, _sensors))
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


def _sensors() -> "Iterable[SensorDefinition]":
    from kbo_pipeline.definitions import defs

    return defs.sensors or ()


def _newest_published(settings: Settings) -> "PublishedExtract | None":
    """The newest published extract; None without one, which is a finding too."""
    from kbo_pipeline.read.register import open_register

    try:
        with open_register(settings.database) as register:
            return register.extracts[0]
    except KboError:
        return None


def _print_findings(findings: "Iterable[Finding]") -> "list[Finding]":
    """Prints a table that grows with each finding; returns the findings."""
    from rich.live import Live
    from rich.text import Text

    printed = []
    rows = table("", "what", "found", "what to do")
    console = terminal()
    with Live(rows, console=console, vertical_overflow="visible"):
        for finding in findings:
            severity = Text(finding.severity, _STYLES[finding.severity])
            texts = (finding.subject, finding.text, finding.remedy or "")
            rows.add_row(severity, *map(Text, texts))
            printed.append(finding)
    if not console.is_terminal:
        click.echo()  # Live ends its last line on terminals only
    counts = Counter(str(finding.severity) for finding in printed)
    click.echo(f"errors: {counts['error']}, warnings: {counts['warning']}, ok: {counts['ok']}")
    return printed


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--enterprises", default=2000, show_default=True, help="Size: 50 to 2,000,000.")
@click.option("--updates", default=5, show_default=True, help="Updates after the Full.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same bytes.")
def sample(directory: Path, enterprises: int, updates: int, seed: int) -> None:
    """Write made-up extracts: a Full, Updates after it, and a later Full."""
    from kbo_pipeline.sample.extracts import Sample, write_sample

    size = Sample(enterprises=enterprises, seed=seed)
    with bar("writing") as progress:
        files = write_sample(directory, size, updates, progress)
    for file in files:
        echo_file(file)
