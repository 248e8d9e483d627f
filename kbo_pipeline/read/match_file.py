"""Matches a CSV or Parquet file with the register: in processes, resumable, complete or absent.

What is done is kept beside the output, a file for each piece of the input, until all of it is.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb

from kbo_pipeline.core.database import connect
from kbo_pipeline.core.errors import ExportError, NotFoundError
from kbo_pipeline.core.files import exclusive_lock, make_private, replace_atomically
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.sql import listed, literal
from kbo_pipeline.core.text import first_line
from kbo_pipeline.read.index import Mark, SearchIndex, read_mark
from kbo_pipeline.read.match import match
from kbo_pipeline.read.published import open_published
from kbo_pipeline.read.types import Entry, Matched

PIECE = 1000
"""Lines of the input that are done at once."""

_FORMAT = "kbo_pipeline match 1"
_ABOUT = "about"
_RESULT = {
    "kbo_number": "VARCHAR",
    "kbo_name": "VARCHAR",
    "kbo_zipcode": "VARCHAR",
    "kbo_municipality": "VARCHAR",
    "kbo_score": "DOUBLE",
    "kbo_certain": "BOOLEAN",
    "kbo_matched": "VARCHAR",
    "kbo_runner_up": "VARCHAR",
    "kbo_runner_up_name": "VARCHAR",
    "kbo_runner_up_score": "DOUBLE",
    "kbo_why": "VARCHAR",
}
"""The columns that are added to those of the input."""

Report = Callable[[str, int, int | None], None]
"""Takes what is done, how many lines are, and of how many."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the input that say who is meant."""

    name: str
    zipcode: str | None = None
    number: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many lines an output has, how many of them are certain, and how many have nobody."""

    lines: int
    certain: int
    nobody: int


def match_file(
    settings: Settings, source: Path, target: Path, columns: Columns, *, report: Report
) -> Counts:
    """Writes the lines of a file with the best candidate for each.

    The same call goes on where a stopped one was; a changed input, other columns or another
    extract start anew. The output appears at the end, whole.

    Args:
        settings: say where the register and its index are.
        source: a file whose name ends in `.csv` or `.parquet`; a CSV file has a header.
        target: likewise; replaced.
        columns: of the input.
        report: takes how far it is.

    Raises:
        ExportError: a name ends otherwise, or the input cannot be read, or already has a column
            that would be added.
        NotFoundError: the input has no such column.
        NotReadyError: there is no search index of the newest extract.
        StorageError: another process is writing the same output.
    """
    for path in (source, target):
        _kind(path)
    pieces = target.with_name(f"{target.name}.pieces")
    with exclusive_lock(settings.work_dir / "match.lock"), connect(settings) as connection:
        with open_published(connection, settings.database):
            mark = read_mark(connection)
        SearchIndex(settings.search_dir, mark)  # here, so that it is refused before anything else
        lines = _load(connection, source, columns)
        about = {
            "format": _FORMAT,
            "source": [source.stat().st_size, _checksum(source)],
            "columns": asdict(columns),
            "mark": asdict(mark),
        }
        _prepare(pieces, about)
        _match_pieces(connection, settings, mark, pieces, lines, report)
        report("writing", lines, lines)
        counts = _write(connection, pieces, target, lines)
        shutil.rmtree(pieces)
    return counts


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise ExportError(f"{path}: expected a name that ends in .csv or .parquet")
    return kind


def _load(connection: duckdb.DuckDBPyConnection, source: Path, columns: Columns) -> int:
    """Reads the input into the table `line`, in order; how many lines it has."""
    file = literal(source)
    rows = f"read_parquet({file})"
    if _kind(source) == ".csv":
        rows = f"read_csv({file}, header = true, all_varchar = true, null_padding = true)"
    try:
        connection.execute(f"CREATE TEMP TABLE input AS\nFROM {rows}")
    except duckdb.Error as error:
        raise ExportError(f"{source}: cannot be read: {first_line(error)}") from None
    there = [name for name, *_ in connection.execute("DESCRIBE input").fetchall()]
    for name in (columns.name, columns.zipcode, columns.number):
        if name is not None and name not in there:
            raise NotFoundError(f"{source}: no column {name!r}; there are {', '.join(there)}")
    taken = sorted({*_RESULT} & {name.lower() for name in there})
    if taken:
        raise ExportError(f"{source}: has a column {taken[0]} already; rename it")
    wanted = listed(
        "NULL::VARCHAR" if name is None else f'"{name.replace(chr(34), chr(34) * 2)}"::VARCHAR'
        for name in (columns.name, columns.zipcode, columns.number)
    )
    connection.execute(
        f"""CREATE TEMP TABLE line(row_number, name, zipcode, number) AS
SELECT rowid, {wanted}
FROM input"""
    )
    ((count,),) = connection.execute("SELECT count(*) FROM line").fetchall()
    return int(count)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _prepare(pieces: Path, about: dict[str, Any]) -> None:
    """Makes the directory of what is done; one about something else is removed."""
    file = pieces / _ABOUT
    if pieces.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before == about:
            return
        is_ours = isinstance(before, dict) and before.get("format") == _FORMAT
        if not is_ours and any(pieces.iterdir()):
            raise ExportError(f"{pieces}: something else is there; move it away")
        shutil.rmtree(pieces)
    make_private(pieces)
    file.write_text(json.dumps(about), encoding="utf-8")


def _match_pieces(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    mark: Mark,
    pieces: Path,
    lines: int,
    report: Report,
) -> None:
    """Matches each piece that is not done yet, as many at once as there are processors."""
    starts = range(0, lines, PIECE)
    missing = [start for start in starts if not _piece(pieces, start).exists()]
    done = min(lines, (len(starts) - len(missing)) * PIECE)
    report("matching", done, lines)
    with _workers(settings.search_dir, mark, len(missing)) as submit:
        at_work: dict[Future[str], int] = {}
        for start in [*missing, None]:
            while at_work and (start is None or len(at_work) >= _AHEAD * (os.cpu_count() or 1)):
                for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                    _keep(_piece(pieces, at_work.pop(future)), future.result())
                    done = min(lines, done + PIECE)
                    report("matching", done, lines)
            if start is not None:
                at_work[submit(_lines(connection, start))] = start


_LOOK_SECONDS = 1.0
_AHEAD = 2  # pieces that wait for each process

_LINES = """
SELECT row_number, name, zipcode, number
FROM line
WHERE row_number >= $1 AND row_number < $2
ORDER BY row_number
"""


def _lines(connection: duckdb.DuckDBPyConnection, start: int) -> list[tuple[Any, ...]]:
    try:
        return connection.execute(_LINES, [start, start + PIECE]).fetchall()
    except RuntimeError:  # what DuckDB makes of Ctrl-C; its own errors are others
        raise KeyboardInterrupt from None


def _piece(pieces: Path, start: int) -> Path:
    return pieces / f"{start:09d}.json"


def _keep(path: Path, text: str) -> None:
    """A piece is there whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


@contextmanager
def _workers(
    directory: Path, mark: Mark, pieces: int
) -> Iterator[Callable[[Sequence[tuple[Any, ...]]], "Future[str]"]]:
    """Yields what has a piece matched: in this process where there is one, else in others."""
    processes = min(os.cpu_count() or 1, pieces)
    if processes <= 1:
        _open(directory, mark)

        def here(rows: Sequence[tuple[Any, ...]]) -> "Future[str]":
            future: Future[str] = Future()
            future.set_result(_match_lines(rows))
            return future

        yield here
        return
    with ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(directory, mark, os.getpid()),
    ) as pool:
        try:
            yield lambda rows: pool.submit(_match_lines, rows)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_index: list[SearchIndex] = []
"""The index that this process has open to match lines."""


def _open(directory: Path, mark: Mark) -> None:
    _index[:] = [SearchIndex(directory, mark)]


def _begin(directory: Path, mark: Mark, parent: int) -> None:
    """Prepares a process that matches: it ends when its parent is stopped, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the others

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _open(directory, mark)


def _match_lines(rows: Sequence[tuple[Any, ...]]) -> str:
    """Matches lines; what comes of it as JSON, a line each."""
    (index,) = _index
    texts = []
    for row_number, name, zipcode, number in rows:
        matched = match(index, Entry(name or "", zipcode, number))
        result = {"row_number": row_number} | result_of(matched)
        texts.append(json.dumps(result, ensure_ascii=False))
    return "\n".join(texts) + "\n"


def result_of(matched: Matched) -> dict[str, Any]:
    """What is added to a line, by column."""
    best, runner_up = matched.best, matched.runner_up
    values = (
        best and best.enterprise_number,
        best and best.name,
        best and best.zipcode,
        best and best.municipality,
        best and best.score,
        matched.certain,
        best and best.matched,
        runner_up and runner_up.enterprise_number,
        runner_up and runner_up.name,
        runner_up and runner_up.score,
        matched.why,
    )
    return dict(zip(_RESULT, values, strict=True))


def _write(connection: duckdb.DuckDBPyConnection, pieces: Path, target: Path, lines: int) -> Counts:
    """Writes the output from the pieces, in the order of the input."""
    types = {"row_number": "BIGINT", **_RESULT}
    connection.execute(f"CREATE TEMP TABLE result ({listed(' '.join(t) for t in types.items())})")
    if lines:
        fields = listed(f"{name}: '{kind}'" for name, kind in types.items())
        connection.execute(
            f"""INSERT INTO result
FROM read_json({literal(pieces / "*.json")}, format = 'newline_delimited', columns = {{
    {fields}
}})"""
        )
    columns = listed(f"r.{name}" for name in _RESULT)
    options = "FORMAT parquet" if _kind(target) == ".parquet" else "FORMAT csv, HEADER"
    query = f"""SELECT i.*, {columns}
FROM input i
JOIN result r ON r.row_number = i.rowid
ORDER BY i.rowid"""
    with replace_atomically(target) as unfinished:
        connection.execute(f"COPY (\n{query}\n) TO {literal(unfinished)} ({options})")
    ((done, certain, nobody),) = connection.execute(_COUNT).fetchall()
    return Counts(done, certain, nobody)


_COUNT = """
SELECT count(*), count(*) FILTER (kbo_certain), count(*) FILTER (kbo_number IS NULL)
FROM result
"""
