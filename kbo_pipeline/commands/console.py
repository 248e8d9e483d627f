"""What commands share: extracts as arguments, tables, bars and JSON on the terminal."""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kbo_pipeline.core.errors import ExtractError, KboError, NotFoundError, NotReadyError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey, key_or_none, zips_in
from kbo_pipeline.core.progress import beside
from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.core.text import duration, megabytes
from kbo_pipeline.operate.markers import PAUSED, is_paused

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from rich.console import Console
    from rich.table import Table

    from kbo_pipeline.read.types import PublishedExtract


def leave_out_pandas() -> None:
    """Lets pandas be missing in this process, for a command that only reads.

    With the first value that is bound, DuckDB would import it to know NaT and NA, for 0.4 s.
    """
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # Python takes it for absent


def extract_key(text: str) -> ExtractKey:
    """The extract that an argument names: by its key, or one known here by its number or date.

    Raises:
        ExtractError: the text is no name of an extract.
        NotFoundError: none that is known here has that number or date, or two have.
    """
    from kbo_pipeline.read.types import as_date

    day = as_date(text)
    if day is None and not (text.isascii() and text.isdigit() and len(text) < 10):
        return ExtractKey.parse(text)
    known = _known_extracts(with_dates=day is not None)
    if day is not None:
        keys = [key for key, (date, _) in known.items() if date == day]
    else:
        keys = [key for key in known if key.number == int(text)]
    if len(keys) > 1:  # of a Full and an Update of one number, what readers have
        keys = [key for key in keys if known[key][1]] or keys
    if len(keys) == 1:
        return keys[0]
    if keys:
        names = " and ".join(map(str, sorted(keys, key=lambda key: (key.number, key.type))))
        raise NotFoundError(f"{text}: {names} are known; name one of them")
    raise NotFoundError(f"{text}: no such extract is known here; name its key, such as 0141-update")


def _known_extracts(*, with_dates: bool) -> dict[ExtractKey, tuple[date | None, bool]]:
    """What is published, staged, refused, or here as a ZIP: its date, and whether it is published.

    Anything unreadable is left out. Dates of ZIPs are read only if they are asked for.
    """
    from kbo_pipeline.fetch.archive import read_snapshot_date
    from kbo_pipeline.read.register import open_register

    extracts: dict[ExtractKey, tuple[date | None, bool]] = {}
    with suppress(KboError, OSError):
        settings = load_settings()
        staged, refused = settings.staging_dir.glob("*.duckdb"), settings.rejected_dir.glob("*")
        for name in (*(file.stem for file in staged), *(place.name for place in refused)):
            if (key := key_or_none(name)) is not None:
                extracts[key] = (None, False)
        for key, file in zips_in(settings.downloads_dir):
            extracts[key] = (None, False)
            if with_dates:
                with suppress(KboError):
                    extracts[key] = (read_snapshot_date(file), False)
    with suppress(KboError, OSError), open_register(load_settings().database) as register:
        for extract in register.extracts:
            extracts[ExtractKey.parse(extract.key)] = (extract.snapshot_date, True)
    return extracts


def complete_extract(context: click.Context, argument: click.Parameter, text: str) -> list[str]:
    """The extracts that a shell proposes: those published, staged, refused, or here as a ZIP.

    On any error there are none, and the command itself says why.
    """
    keys = map(str, _known_extracts(with_dates=False))
    return sorted((key for key in keys if key.startswith(text)), reverse=True)


def in_ranges(done: Sequence[str]) -> str:
    """The names of what was run; more than two consecutive batches are a range."""

    def position(item: tuple[int, str]) -> int | str:
        place, name = item
        try:
            return BatchKey.parse(name).number - place  # the same for consecutive batches
        except ExtractError:  # staging, publication
            return name

    ranges = [[name for _, name in group] for _, group in groupby(enumerate(done), position)]
    return ", ".join(
        f"{names[0]} to {names[-1]}" if len(names) > 2 else ", ".join(names) for names in ranges
    )


def print_json(value: Any) -> None:
    """Prints JSON in ASCII, which any terminal can show and any program reads."""
    click.echo(json.dumps(value, indent=2, default=str))


def with_source(published: "PublishedExtract | None", data: Any) -> dict[str, Any]:
    """What `--json` prints: data, and the published extract, if any, that it comes from."""
    source = published and {
        "extract": published.key,
        "snapshot_date": published.snapshot_date,
        "line": published.source,
    }
    return {"source": source, "data": data}


def echo_file(file: Path) -> None:
    """Prints a file that was made, and its size."""
    click.echo(f"{file}  {megabytes(file.stat().st_size, 2)}")


def terminal(*, errors: bool = False) -> "Console":
    """Rich's console on standard output or standard error, which shows texts unchanged."""
    from rich.console import Console

    return Console(stderr=errors, highlight=False, emoji=False)


def table(*names: str, numbers: Sequence[str] = ()) -> "Table":
    """A table without lines, in which no text is cut.

    Args:
        names: of its columns.
        numbers: those of them that are aligned to the right.
    """
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for name in names:
        grid.add_column(name, overflow="fold", justify="right" if name in numbers else "left")
    return grid


@contextmanager
def report_line() -> Iterator[Callable[[str], None]]:
    """Yields what shows the newest line of progress; without a terminal, each one is printed."""
    from rich.markup import escape

    console = terminal(errors=True)
    if not console.is_terminal:
        yield lambda line: click.echo(line, err=True)
        return
    with console.status("") as shown:
        yield lambda line: shown.update(escape(line))


@contextmanager
def bar(
    description: str, total: int | None = 100, *, has_clock: bool = True
) -> Iterator[Callable[[str, float, int | None], None]]:
    """Shows a bar; yields what moves it: its description, how much is done, of how much.

    Args:
        description: what it says until it is moved.
        total: how much is to be done; None while that is not known.
        has_clock: whether the time that has passed is beside it.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = terminal(errors=True)
    if not console.is_terminal:  # a bar would leave an empty line
        yield lambda description, done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        *([TimeElapsedColumn()] if has_clock else []),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(description, total=total)

        def show(description: str, done: float, total: int | None) -> None:
            shown.update(task, description=description, completed=done, total=total)

        yield show


@contextmanager
def pause_reported(settings: Settings) -> Iterator[None]:
    """Says once, during the block, that `kbo pause` makes it wait."""

    def look(ended: threading.Event) -> None:
        while not is_paused(settings):
            if ended.wait(0.5):
                return
        click.echo(f"kbo: {PAUSED}", err=True)

    with beside(look):
        yield


@contextmanager
def progress_bar(
    instance: "DagsterInstance", settings: Settings, key: ExtractKey
) -> Iterator[None]:
    """Shows the progress of an extract, as `kbo status` does, during the block."""
    if not terminal(errors=True).is_terminal:
        yield
        return
    from kbo_pipeline.operate.runs.status import read_status

    with bar(f"{key} staging", has_clock=False) as show:

        def follow(ended: threading.Event) -> None:
            while not ended.wait(0.5):
                with suppress(NotReadyError):  # the first run has not registered the extract yet
                    now = read_status(instance, settings, key)
                    left = now.seconds_left
                    rest = "" if left is None else f", about {duration(left)} left"
                    show(f"{key} {now.words}{rest}", now.percentage, 100)

        with beside(follow):
            yield
