"""The rows of the plan in which processes of a stack die, or stand still for a while."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from kbo_pipeline_tests.tools.chaos.bench import Bench, repeated
from kbo_pipeline_tests.tools.chaos.damage import flip_a_bit
from kbo_pipeline_tests.tools.chaos.outcomes import Row
from kbo_pipeline_tests.tools.chaos.stack import FORKING, Stack, embedded_postmaster, killed

_APPEARS_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_LONGEST_LIFE = 6.0  # of a run worker that applies ten batches, about
_STOPPED_SECONDS = 90.0
_LONGEST_PAUSE = 5.0  # before what has no supervisor is started again

_FAIL_RUN = """
import sys
import dagster as dg
with dg.DagsterInstance.get() as instance:
    run = instance.get_run_by_id(sys.argv[1])
    instance.report_run_failed(run, "taken for dead")
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
"""

Victims = Callable[[Stack, random.Random], list[psutil.Process]]


def death_rows() -> list[Row]:
    """The rows of this module."""
    named: list[tuple[str, Victims]] = [
        ("the run worker", lambda stack, chance: stack.workers()),
        ("the daemon", lambda stack, chance: stack.named("daemon.beat")),
        (
            "the web server",
            lambda stack, chance: stack.named("kbo_pipeline.operate.processes.webserver"),
        ),
        ("the code server", _code_server),
        ("kbo start alone", lambda stack, chance: [stack.main]),
        ("all of them at once", lambda stack, chance: stack.all()),
    ]
    rows = [Row(f"kill -9 of {name}", 20, repeated(_killing(victims))) for name, victims in named]
    harmed = _killing(lambda stack, chance: stack.all(), _harm_register)
    rows.append(Row("kill -9 of all, and the register at work harmed", 10, repeated(harmed)))
    rows.append(Row("kill -9 of the embedded PostgreSQL", 10, repeated(_kill_embedded)))
    rows.append(Row("SIGSTOP of a run worker for 90 s", 5, repeated(_stop_worker())))
    return rows


def _code_server(stack: Stack, chance: random.Random) -> list[psutil.Process]:
    """The code server itself, or the process from which it has run workers forked."""
    forking = stack.named(FORKING)
    if chance.random() < 0.5:
        workers = {process.pid for process in stack.workers()}
        return [process for process in forking if process.pid not in workers]
    return [p for p in stack.named("code-server") if p not in forking]


def _harm_register(bench: Bench, chance: random.Random) -> None:
    """What a disk may do while nothing runs: the log loses its end, a bit changes, all is gone.

    There is a log for moments only: it is cut where it is there, and the others take turns.
    """
    file = bench.pipeline.directory / "work" / "register.duckdb"
    log = file.with_name(f"{file.name}.wal")
    if log.exists() and chance.random() < 0.5:
        harm = "log cut"
        os.truncate(log, chance.randrange(log.stat().st_size + 1))
    elif bench.outcome.hits % 2:
        harm = "gone"
        file.unlink()
        log.unlink(missing_ok=True)
    else:
        harm = "flip"
        flip_a_bit(file, chance)
    bench.outcome.note(f"the register at work: {harm}")


def _killing(
    victims: Victims, harm: Callable[[Bench, random.Random], None] | None = None
) -> Callable[[Bench, random.Random], None]:
    def repetition(bench: Bench, chance: random.Random) -> None:
        bench.begin()
        bench.reach_a_moment(chance)
        found = appearing(bench, chance, lambda: victims(bench.stack, chance))
        fault_at = time.monotonic()
        with _started_again(bench, found, chance):
            killed(found)
            if harm is not None:
                harm(bench, chance)
        back_at = time.monotonic()
        mark = bench.stack.events.newest() or 0
        # What was lost comes again at the next look, which is a minute away at most.
        bench.finish(fault_at, back_at, mark, promised=harm is None)

    return repetition


def _kill_embedded(bench: Bench, chance: random.Random) -> None:
    bench.begin()
    bench.reach_a_moment(chance)
    mark = bench.stack.events.newest() or 0
    directory = bench.pipeline.directory
    found = appearing(bench, chance, lambda: [p for p in [embedded_postmaster(directory)] if p])
    fault_at = time.monotonic()
    killed(found)
    bench.finish(fault_at, fault_at, mark)


def _stop_worker() -> Callable[[Bench, random.Random], None]:
    """In turns: its run is taken for dead, so that Dagster retries it; or `kbo retry` comes."""
    times = 0

    def repetition(bench: Bench, chance: random.Random) -> None:
        nonlocal times
        times += 1
        bench.begin()
        bench.reach_a_moment(chance)
        found = appearing(bench, chance, bench.stack.workers)
        fault_at = time.monotonic()
        for process in found:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGSTOP)
        try:
            if times % 2:
                _take_for_dead(bench)
            else:
                bench.kbo("retry", bench.key)
            time.sleep(max(_STOPPED_SECONDS - (time.monotonic() - fault_at), 0.0))
            if not all(process.is_running() for process in found):
                bench.outcome.note("the stopped worker was killed meanwhile")
            mark = bench.stack.events.newest() or 0
        finally:
            for process in found:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)
        bench.finish(fault_at, time.monotonic(), mark)

    return repetition


def _take_for_dead(bench: Bench) -> None:
    """Somebody says that a run has failed whose worker lives: Dagster retries it."""
    run = bench.stack.events.started_run()
    if run is None:
        bench.outcome.note("the worker stood still before its run had begun")
        return
    home = {"DAGSTER_HOME": str(bench.pipeline.directory / "dagster_home")}
    bench.pipeline.run("-c", _FAIL_RUN, run, settings=home)
    bench.outcome.note("a run whose worker stood still was taken for dead")


def appearing(
    bench: Bench, chance: random.Random, find: Callable[[], list[psutil.Process]]
) -> list[psutil.Process]:
    """The victims; a moment after they have appeared, when there are none at first.

    Nobody, when the import was quicker than the moment that was waited for.
    """
    deadline = time.monotonic() + _APPEARS_SECONDS
    while not (found := find()):
        if bench.is_published() and not bench.stack.events.open_runs(bench.key):
            bench.outcome.note("published before anybody was killed: once more")
            bench.is_missed = True
            return []
        if time.monotonic() > deadline:
            bench.problems.append("nobody to kill has appeared")
            return []
        time.sleep(_LOOK_SECONDS)
        if find():
            time.sleep(chance.uniform(0.0, _LONGEST_LIFE))
    return found


@contextmanager
def _started_again(
    bench: Bench, victims: list[psutil.Process], chance: random.Random
) -> Iterator[None]:
    """Starts `kbo start` again after a while if it is among the victims: nobody supervises it."""
    is_main = bench.stack.main in victims
    yield
    if is_main:
        bench.stack.wait()
        time.sleep(chance.uniform(0.0, _LONGEST_PAUSE))
        bench.stack.start()
