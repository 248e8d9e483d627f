"""How quick the register is to read over HTTP: `python -m ...bench.http DATABASE` prints JSON.

One `kbo serve` and its clients share the machine. An enterprise is asked for anew, then once more,
then with the `ETag` of the answer; then many clients ask for others at once.
"""

import http.client
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import quantiles
from urllib.parse import quote, urlsplit

from kbo_pipeline.read.register import read_register

_NUMBERS = 2000
_SINGLE = 400
_CLIENTS = 16
_SECONDS = 10.0


def main(database: Path, *options: str) -> None:
    """Prints the seconds of the start, milliseconds of answers (95 % are quicker), and the rate."""
    with read_register(database) as register:
        count = register.sql("SELECT count(*) FROM current.enterprise").fetchall()[0][0]
        rows = register.sql(
            "SELECT enterprise_number, primary_name FROM current.enterprise"
            " WHERE length(primary_name) > 5 ORDER BY hash(enterprise_number) LIMIT $most",
            most=_NUMBERS,
        ).fetchall()
    numbers = [number for number, _ in rows]
    misspelt = [quote(name[:2] + name[3:]) for _, name in rows[:_SINGLE]]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "kbo_pipeline.cli", "serve", "--port", "0", *options],
        env={"KBO_DATABASE": str(database)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        found = re.match(r"(http://\S+?)/kbo", process.stdout.readline())
        assert found is not None
        client = Client(found[1])
        client.get("source")
        begun = time.perf_counter() - started
        single = numbers[:_SINGLE]
        new = [_seconds(partial(client.get, f"enterprises/{n}")) for n in single]
        again = [_seconds(partial(client.get, f"enterprises/{n}")) for n in single]
        known = [_seconds(partial(client.get, f"enterprises/{n}", client.tag)) for n in single]
        searched = [_seconds(partial(client.get, f"find?q={name}")) for name in misspelt]
        print(
            json.dumps(
                {
                    "enterprises": count,
                    "start, until the first answer, s": round(begun, 2),
                    "an enterprise, new, p95, ms": _p95(new),
                    "an enterprise, asked again, p95, ms": _p95(again),
                    "asked again with its ETag, p95, ms": _p95(known),
                    "a search for a misspelt name, p95, ms": _p95(searched),
                    "look-ups a second, others each time": _rate(found[1], numbers[_SINGLE:]),
                },
                indent=1,
            )
        )
    finally:
        process.terminate()
        process.wait(30)


class Client:
    """A client with a connection that is kept."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        self.tag = ""

    def get(self, path: str, tag: str = "") -> None:
        """Asks, and reads the answer."""
        headers = {"If-None-Match": tag} if tag else {}
        self._connection.request("GET", f"/kbo/v1/{path}", headers=headers)
        answer = self._connection.getresponse()
        answer.read()
        # An Update that is published meanwhile stops some enterprises, and changes all tags.
        assert answer.status in ({304, 200, 404} if tag else {200, 404}), answer.status
        self.tag = answer.headers["ETag"] or self.tag


def _rate(address: str, numbers: Sequence[str]) -> float:
    until = time.perf_counter() + _SECONDS
    others = itertools.count()

    def ask(_: int) -> int:
        client, asked = Client(address), 0
        while time.perf_counter() < until:
            place = next(others)
            language = ("nl", "fr", "de")[place // len(numbers) % 3]  # so that none is kept
            client.get(f"enterprises/{numbers[place % len(numbers)]}?lang={language}")
            asked += 1
        return asked

    with ThreadPoolExecutor(_CLIENTS) as threads:
        return round(sum(threads.map(ask, range(_CLIENTS))) / _SECONDS, 1)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _p95(seconds: Sequence[float]) -> float:
    return round(quantiles(seconds, n=20)[-1] * 1000, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
