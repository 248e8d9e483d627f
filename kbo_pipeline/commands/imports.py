"""`kbo import`, `fetch`, `retry`, `publish`, `cancel`, `rollback`: one extract at a time."""

import time
from pathlib import Path

import click

from kbo_pipeline.commands.console import (
    complete_extract,
    echo_file,
    extract_key,
    in_ranges,
    pause_told,
    progress_bar,
    report_line,
)
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.text import counted


@click.command("import")
@click.argument("zips", metavar="ZIP...", nargs=-1, required=True, type=click.Path(path_type=Path))
def import_command(zips: tuple[Path, ...]) -> None:
    """Import extracts in number order, through the same jobs as the web UI."""
    from kbo_pipeline.core.extracts import import_order
    from kbo_pipeline.fetch.archive import read_extract
    from kbo_pipeline.operate.processes.postgres import start_ahead
    from kbo_pipeline.read.published import published_state_of

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
            if not imported:
                click.echo(f"{extract.key}: already published: nothing to do")
                continue
            progress = Progress(instance)
            for warning in progress.warnings(extract.key):
                click.echo(f"kbo: warning: {extract.key}: {warning}", err=True)
            rejected, aside = progress.rejected_rows(extract.key), ""
            if rejected:
                aside = f"; {counted(rejected, 'row')} set aside, see the table rejected_row"
            seconds = time.monotonic() - started
            click.echo(f"{extract.key}: published in {seconds:.1f} s{aside}")


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
        with progress_bar(instance, key), pause_told(settings):
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

    with open_instance(settings) as instance, pause_told(settings):
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
