"""The row of the plan in which people cancel, pause, resume, retry and roll back at any moment."""

import random
import time
from collections.abc import Callable

from kbo_pipeline_tests.tools.chaos.bench import Bench, repeated
from kbo_pipeline_tests.tools.chaos.outcomes import Row
from kbo_pipeline_tests.tools.chaos.stack import begun

_AT_ONCE = ("cancel", "retry", "pause", "resume", "rollback")
_RETRY_SECONDS = 180.0
_MOMENT = 1.0  # seconds by which a step may be ahead of a pause that it has not seen

Scene = Callable[[Bench, random.Random], bool]
"""Returns whether the extract waits for a person now."""


def command_rows() -> list[Row]:
    """The rows of this module."""
    return [Row("cancel, pause, resume, retry, rollback", 50, repeated(_commands))]


def _commands(bench: Bench, chance: random.Random) -> None:
    scenes: list[Scene] = [
        _cancel,
        _cancel_an_import,
        _pause,
        _retry,
        _roll_back,
        _all_at_once,
    ]
    scene = chance.choice(scenes)
    bench.outcome.note(f"scene {scene.__name__.strip('_').replace('_', ' ')}")
    waits = scene(bench, chance)
    fault_at, mark = time.monotonic(), bench.stack.events.newest() or 0
    if waits:
        _bring_back(bench)
    bench.finish(fault_at, fault_at, mark, promised=False)


def _cancel(bench: Bench, chance: random.Random) -> bool:
    bench.begin()
    bench.reach_a_moment(chance)
    if not bench.kbo("cancel", bench.key).is_done:
        return False
    _check_cancelled(bench, chance)
    return True


def _cancel_an_import(bench: Bench, chance: random.Random) -> bool:
    zip_file = bench.made()
    command = begun(bench.pipeline, "import", zip_file)
    bench.pause(chance.uniform(1.0, 5.0 + sum(bench.seconds) / 2))
    is_cancelled = bench.kbo("cancel", bench.key).is_done
    is_imported = bench.end(command).is_done
    if is_cancelled and is_imported:
        bench.problems.append(f"{bench.key}: cancelled, and imported nevertheless")
    if is_cancelled:
        _check_cancelled(bench, chance)
    return not is_imported


def _pause(bench: Bench, chance: random.Random) -> bool:
    bench.begin()
    bench.reach_a_moment(chance)
    bench.kbo("pause")
    paused_at, before = time.time(), bench.is_published()
    time.sleep(chance.uniform(5.0, 15.0))
    if bench.is_published() != before:  # what was at work when it was paused comes to its end
        if bench.stack.events.has_begun("publish", bench.key, paused_at + _MOMENT):
            bench.problems.append(f"{bench.key}: published while paused")
        else:
            bench.outcome.note("paused while it was being published")
    bench.kbo("resume")
    return False


def _retry(bench: Bench, chance: random.Random) -> bool:
    bench.begin()
    bench.reach_a_moment(chance)
    bench.kbo("retry", bench.key)
    return False


def _roll_back(bench: Bench, chance: random.Random) -> bool:
    """Half of the times as soon as it is published, otherwise whenever it is; that is refused."""
    bench.begin()
    if chance.random() < 0.5:
        bench.wait(bench.is_published, bench.key)
        time.sleep(chance.uniform(0.0, 3.0))
    else:
        bench.reach_a_moment(chance)
    if not bench.kbo("rollback", bench.key).is_done:
        return False
    time.sleep(chance.uniform(0.0, 12.0))
    bench.check_readers_have(bench.newest - 1)
    return True


def _all_at_once(bench: Bench, chance: random.Random) -> bool:
    """Several people in several terminals."""
    bench.begin()
    bench.reach_a_moment(chance)
    started = []
    for name in chance.choices(_AT_ONCE, k=chance.randint(2, 4)):
        extract = () if name in ("pause", "resume") else (bench.key,)
        started.append(begun(bench.pipeline, name, *extract))
        time.sleep(chance.choice((0.0, chance.uniform(0.0, 4.0))))
    time.sleep(chance.uniform(0.0, 4.0))
    bench.kbo("resume")  # or those that wait for it would wait for ever
    ended = [bench.end(command) for command in started]
    bench.kbo("resume")
    return any(one.is_done and one.arguments[0] in ("cancel", "rollback") for one in ended)


def _check_cancelled(bench: Bench, chance: random.Random) -> None:
    time.sleep(chance.uniform(0.0, 7.0))  # the sensors look each 5 s
    if bench.is_published():
        bench.problems.append(f"{bench.key}: cancelled, and published nevertheless")
    bench.problems += [
        f"{bench.key}: cancelled, and {run}" for run in bench.stack.events.open_runs(bench.key)
    ]


def _bring_back(bench: Bench) -> None:
    """What the person does whom the extract waits for, until nobody else is at work on it."""
    deadline = time.monotonic() + _RETRY_SECONDS
    while not (ended := bench.kbo("retry", bench.key)).is_done:
        if time.monotonic() > deadline:
            bench.problems.append(f"{bench.key}: retry does not succeed: {ended.refusal}")
            return
        time.sleep(1.0)
