"""The rows of the plan in which PostgreSQL is away."""

import random
import time
from collections.abc import Callable

from kbo_pipeline_tests.tools.chaos.bench import Bench, repeated
from kbo_pipeline_tests.tools.chaos.deaths import appearing
from kbo_pipeline_tests.tools.chaos.outcomes import Row
from kbo_pipeline_tests.tools.chaos.stack import killed

_LONGEST_AWAY = 12.0


def absence_rows() -> list[Row]:
    """The rows of this module."""
    rows = [
        Row(
            f"PostgreSQL stopped -m immediate for {seconds} s during a run",
            10,
            repeated(_away_for(seconds), external=True),
        )
        for seconds in (1, 12, 60)
    ]
    rows.append(Row("PostgreSQL away at the start", 10, repeated(_away_at_start, external=True)))
    rows.append(
        Row(
            "PostgreSQL stopped together with the worker", 10, repeated(_with_worker, external=True)
        )
    )
    return rows


def _away_for(seconds: float) -> Callable[[Bench, random.Random], None]:
    def repetition(bench: Bench, chance: random.Random) -> None:
        assert bench.postgres is not None
        bench.begin()
        bench.reach_a_moment(chance)
        appearing(bench, chance, bench.stack.workers)
        time.sleep(chance.uniform(0.0, 3.0))
        mark = bench.stack.events.newest() or 0
        fault_at = time.monotonic()
        bench.postgres.stop()
        time.sleep(seconds)
        bench.postgres.start()
        bench.finish(fault_at, time.monotonic(), mark)

    return repetition


def _away_at_start(bench: Bench, chance: random.Random) -> None:
    """Away before `kbo start`, or stopped while that starts; its service starts it again."""
    assert bench.postgres is not None
    bench.begin()
    bench.reach_a_moment(chance)
    mark = bench.stack.events.newest() or 0
    fault_at = time.monotonic()
    killed(bench.stack.all())
    bench.stack.wait()
    if chance.random() < 0.5:
        bench.postgres.stop()
        bench.stack.start()
    else:
        bench.stack.start()
        time.sleep(chance.uniform(0.0, 10.0))
        bench.postgres.stop()
    back_at = time.monotonic() + chance.uniform(1.0, _LONGEST_AWAY)
    while time.monotonic() < back_at:
        _start_if_ended(bench)
        time.sleep(0.1)
    bench.postgres.start()
    back_at = time.monotonic()
    while time.monotonic() - back_at < 15.0:  # it may be about to give up
        _start_if_ended(bench)
        time.sleep(0.1)
    bench.finish(fault_at, back_at, mark)


def _start_if_ended(bench: Bench) -> None:
    """Does what a service manager does with `kbo start`, a second after it has given up."""
    code = bench.stack.ended()
    if code is None:
        return
    last = bench.stack.last_line()
    if code != 1 or not last.startswith("kbo: "):
        bench.problems.append(f"kbo start ended with {code}: {last}")
    bench.outcome.note("kbo start ended in one line, and was started again")
    time.sleep(1.0)
    bench.stack.start()


def _with_worker(bench: Bench, chance: random.Random) -> None:
    assert bench.postgres is not None
    bench.begin()
    bench.reach_a_moment(chance)
    workers = appearing(bench, chance, bench.stack.workers)
    mark = bench.stack.events.newest() or 0
    fault_at = time.monotonic()
    if chance.random() < 0.5:
        killed(workers)
        bench.postgres.stop()
    else:
        bench.postgres.stop()
        killed(workers)
    time.sleep(chance.uniform(1.0, _LONGEST_AWAY))
    bench.postgres.start()
    bench.finish(fault_at, time.monotonic(), mark)
