"""A reader: attaches the lake, reads all that is published, and again, until its input ends.

`python -m kbo_pipeline_tests.tools.soak.reader FILE`, with the settings in the environment:
a line of JSON for each time goes to the file.
"""

import json
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb

from kbo_pipeline.core.errors import KboError, NotReadyError
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.read.published import content_hash, open_published

_PAUSE = 0.2  # seconds


@dataclass(frozen=True, slots=True)
class Read:
    """One look at the lake.

    Attributes:
        began, ended: in seconds of the epoch.
        number: the newest extract that was seen; 0 for none.
        content: the hash of all row versions.
        error: what went wrong; empty when nothing did.
    """

    began: float
    ended: float
    number: int = 0
    content: str = ""
    error: str = ""


def main() -> None:
    """Reads until standard input ends."""
    database = load_settings().database
    over = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(over,), daemon=True).start()
    with Path(sys.argv[1]).open("a") as out:
        while not over.wait(_PAUSE):
            began, number, content, error = time.time(), 0, "", ""
            try:
                with (
                    duckdb.connect(":memory:") as connection,
                    open_published(connection, database) as standing,
                ):
                    if standing.newest is not None:
                        number, content = standing.newest.number, content_hash(connection)
            except NotReadyError:
                pass  # nothing is published yet: seen as such
            except (KboError, duckdb.Error) as raised:
                error = f"{type(raised).__name__}: {raised}".split("\n", 1)[0]
            out.write(json.dumps(asdict(Read(began, time.time(), number, content, error))) + "\n")
            out.flush()


def reads_of(file: Path) -> list[Read]:
    """What a reader has written; a last line that is not whole is left out."""
    lines = file.read_text().splitlines(keepends=True)
    return [Read(**json.loads(line)) for line in lines if line.endswith("\n")]


def _wait_for_the_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    main()
