"""The daemon: Dagster's own, but it looks each second which sensors are due.

Dagster's loop looks each five seconds and has no setting for it (1.13.27). From a ZIP to readers
three sensors wait for each other, so that such a pause counts three times.
"""

import runpy
import sys
from pathlib import Path

from kbo_pipeline.operate import insides
from kbo_pipeline.operate.processes.pulse import beat

LOOP_SECONDS = 1


def run() -> None:
    """Does what `dagster-daemon` does, with its options after the name of a file to touch."""
    beat(Path(sys.argv.pop(1)))
    if insides.are_tested():
        from dagster._daemon import sensor

        sensor.MIN_INTERVAL_LOOP_TIME = LOOP_SECONDS
    runpy.run_module("dagster._daemon", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run()
