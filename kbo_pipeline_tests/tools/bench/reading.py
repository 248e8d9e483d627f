"""How quick the published file is to read: `python -m ...bench.reading DATABASE` prints JSON.

Cold is the first time with nothing of the file in the system's cache, warm the median of the times
when it is asked again.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import duckdb

from kbo_pipeline.read.register import read_register

_DOCUMENT = Path(__file__).parents[3] / "docs" / "data.md"
_NUMBERS = 25
_WARM = 5
_WARM_SECONDS = 8.0
"""A question is not asked again when this many have passed."""
_AT_ONCE = 16  # threads


def main(database: Path) -> None:
    """Prints for each question its seconds, cold and warm."""
    numbers, zipcode = _subjects(database)
    found: dict[str, dict[str, float]] = {}
    for name, ask in _questions(database, numbers, zipcode):
        _forget(database)
        cold = _seconds(ask)
        found[name] = {"cold": cold, "warm": median(_again(ask))}
    found |= _lookups(database, numbers)
    found |= _many_lookups(database)
    found["kbo show, the whole command"] = _command(database, "show", numbers[0])
    found["kbo --help, the whole command"] = _command(database, "--help")
    print(json.dumps(found))


def _subjects(database: Path) -> tuple[list[str], str]:
    """Enterprises from everywhere in the register, and the postcode with the most restaurants."""
    with duckdb.connect(str(database), read_only=True) as connection:
        (count,) = connection.execute("SELECT count(*) FROM current.enterprise").fetchall()[0]
        rows = connection.execute(
            "SELECT enterprise_number FROM current.enterprise ORDER BY 1"
        ).fetchall()
        zipcodes = connection.execute(
            "SELECT zipcode FROM current.address JOIN current.activity USING (entity_number)"
            " WHERE nace_version = '2025' AND nace_code LIKE '56%' AND entity_number[:1] = '2'"
            " GROUP BY zipcode ORDER BY count(*) DESC LIMIT 1"
        ).fetchall()
    return [rows[count * n // _NUMBERS][0] for n in range(_NUMBERS)], zipcodes[0][0]


def _questions(
    database: Path, numbers: list[str], zipcode: str
) -> Iterator[tuple[str, Callable[[], Any]]]:
    profile = '"current".enterprise_profile'
    queries = {
        "Enterprises by section": f"SELECT main_section, count(*) FROM {profile} GROUP BY ALL",
        "Main activities of a postcode": "SELECT main_nace_version, main_nace_code, count(*)"
        f" FROM {profile} WHERE seat_zipcode = '9000' GROUP BY ALL ORDER BY 3 DESC",
        **{
            title: query
            for title, query in re.findall(
                r"### ([^\n]+)\n(?:(?!###).)*?```sql\n(.*?)```", _DOCUMENT.read_text(), re.DOTALL
            )
        },
    }
    for title, query in queries.items():
        subject = query.replace("'9000'", f"'{zipcode}'").replace("0403.170.701", numbers[7])
        with duckdb.connect(str(database), read_only=True) as connection:
            yield title, partial(_answer, connection, subject)
    with read_register(database) as register:
        extracts = [published.key for published in register.extracts]
        yield (
            f"an enterprise at each of {len(extracts)} extracts",
            lambda: [register.enterprise(numbers[7], at=number) for number in extracts],
        )


def _answer(connection: duckdb.DuckDBPyConnection, query: str) -> list[Any]:
    return connection.execute(query).fetchall()


def _lookups(database: Path, numbers: list[str]) -> dict[str, dict[str, float]]:
    _forget(database)
    with read_register(database) as register:
        cold, *others = (_seconds(partial(register.enterprise, number)) for number in numbers)
        again = [_seconds(partial(register.enterprise, number)) for number in numbers]
    return {
        "an enterprise with all its parts": {"cold": cold, "warm": median(again)},
        f"the slowest of {len(numbers)} enterprises": {"warm": max(again)},
        "an enterprise that nobody has asked for before": {"warm": median(others)},
    }


def _many_lookups(database: Path) -> dict[str, dict[str, float]]:
    """Seconds that each of many enterprises takes, new ones, when threads ask for them at once."""
    with read_register(database) as register:
        rows = register.sql(
            'SELECT enterprise_number FROM "current".enterprise USING SAMPLE reservoir(600 ROWS)'
            " REPEATABLE (1)"
        ).fetchall()
        register.enterprise(rows[0][0])
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            started = time.perf_counter()
            count = len([*threads.map(lambda row: register.enterprise(*row), rows)])
            seconds = time.perf_counter() - started
    return {f"each of {count} enterprises, {_AT_ONCE} threads": {"warm": seconds / count}}


def _again(ask: Callable[[], Any]) -> Iterator[float]:
    """The seconds of asking again, some times."""
    started = time.perf_counter()
    for _ in range(_WARM):
        yield _seconds(ask)
        if time.perf_counter() - started > _WARM_SECONDS:
            return


def _command(database: Path, *arguments: str) -> dict[str, float]:
    def run() -> bytes:
        command = [sys.executable, "-m", "kbo_pipeline.cli", *arguments]
        settings = {"KBO_DATABASE": str(database)}
        return subprocess.run(command, env=settings, stdout=subprocess.PIPE, check=True).stdout

    _forget(database)
    return {"cold": _seconds(run), "warm": median(_seconds(run) for _ in range(_WARM))}


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    assert work() is not None
    return time.perf_counter() - started


def _forget(file: Path) -> None:
    """Has the system forget what it holds of a file."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
