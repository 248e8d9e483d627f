"""The rows of the plan in which several want to import at once."""

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kbo_pipeline_tests.tools.chaos.bench import FULL, Bench, repeated
from kbo_pipeline_tests.tools.chaos.outcomes import Row
from kbo_pipeline_tests.tools.chaos.stack import begun

_THROWN = 20  # extracts, the Full among them
_PATIENCE = 2400.0  # seconds for all of them, on a machine that does other things too


def race_rows() -> list[Row]:
    """The rows of this module."""
    return [
        Row("one extract started twice at once", 20, repeated(_twice)),
        Row("two extracts at once", 10, repeated(_two, extracts=2, most=10)),
        Row(
            "20 extracts into the inbox in random order",
            5,
            repeated(_thrown, most=1, has_full=False, extracts=_THROWN),
        ),
    ]


def _twice(bench: Bench, chance: random.Random) -> None:
    """By the portal's sensor and by `kbo import`, which may find that it is late."""
    mark = bench.stack.events.newest() or 0
    zip_file = bench.made()
    fault_at = time.monotonic()
    if chance.random() < 0.5:
        bench.offer(zip_file)
        time.sleep(chance.uniform(0.0, sum(bench.seconds)))
        command = begun(bench.pipeline, "import", zip_file)
    else:
        command = begun(bench.pipeline, "import", zip_file)
        time.sleep(chance.uniform(0.0, 6.0))
        bench.offer(zip_file)
    bench.end(command)
    bench.finish(fault_at, fault_at, mark, promised=False)


def _two(bench: Bench, chance: random.Random) -> None:
    """The first by the portal or the inbox, the second by another way at the same time."""
    mark = bench.stack.events.newest() or 0
    first, second = bench.made(), bench.made()
    fault_at = time.monotonic()
    command = None
    ways: list[Callable[[Path], None]] = [bench.offer, partial(_drop, bench)]
    chance.shuffle(ways)
    pair = [(ways[0], first), (ways[1], second)]
    if chance.random() < 0.5:  # refused when it comes too early; the portal has it then too
        command = begun(bench.pipeline, "import", second)
        time.sleep(chance.uniform(0.0, sum(bench.seconds)))
    else:
        chance.shuffle(pair)
    for offer, zip_file in pair:
        offer(zip_file)
        time.sleep(chance.uniform(0.0, 3.0))
    if command is not None:
        bench.end(command)
    bench.finish(fault_at, fault_at, mark, promised=False)


def _thrown(bench: Bench, chance: random.Random) -> None:
    """Each copied there in pieces, with pauses, by several people at once."""
    zips = [bench.made() for _ in range(_THROWN)]
    bench.wait((bench.pipeline.directory / "inbox" / "done").is_dir, "the inbox")
    chance.shuffle(zips)
    fault_at = time.monotonic()
    for zip_file in zips:
        _drop(bench, zip_file, pieces=chance.randint(1, 3))
        time.sleep(chance.choice((0.0, 0.1, chance.uniform(0.0, 8.0))))
    bench.wait(bench.is_published, f"{_THROWN} extracts", _PATIENCE)
    bench.outcome.took(None, time.monotonic() - fault_at)
    bench.wait(lambda: not any(_waiting(bench)), "the end of the inbox", 60.0)
    done = {file.stem for file in (bench.pipeline.directory / "inbox" / "done").glob("*.zip")}
    if len(done) != _THROWN:
        bench.problems.append(f"{len(done)} of {_THROWN} ZIPs are in done/")
    with bench.pipeline.read() as reader:
        found = reader.execute(
            "SELECT extract_number FROM import_jobs ORDER BY completed_at"
        ).fetchall()
    if found != [(FULL + n,) for n in range(_THROWN)]:
        bench.problems.append(f"published in another order: {found}")


def _waiting(bench: Bench) -> list[str]:
    inbox = bench.pipeline.directory / "inbox"
    return [f.name for top in (inbox, inbox / "processing") for f in top.glob("*.zip")]


def _drop(bench: Bench, zip_file: Path, pieces: int = 1) -> None:
    """Copies a ZIP into the inbox, as copying programs do: under its own name, bit by bit."""
    content = zip_file.read_bytes()
    size = len(content) // pieces + 1
    with (bench.pipeline.directory / "inbox" / zip_file.name).open("wb") as out:
        for start in range(0, len(content), size):
            out.write(content[start : start + size])
            out.flush()
            if pieces > 1:
                time.sleep(0.5)
