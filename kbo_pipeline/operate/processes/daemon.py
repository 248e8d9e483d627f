"""The daemon: Dagster's own, but it looks each second which sensors are due.

Dagster's loop looks each five seconds and has no setting for it (1.13.27). From a ZIP to readers
three sensors wait for each other, so that such a pause counts three times.
"""

import sys
from pathlib import Path

from dagster._daemon import sensor
from dagster._daemon.cli import main

from kbo_pipeline.operate.processes.pulse import beat

LOOP_SECONDS = 1


def run() -> None:
    """Does what `dagster-daemon` does, with its options after the name of a file to touch."""
    beat(Path(sys.argv.pop(1)))
    sensor.MIN_INTERVAL_LOOP_TIME = LOOP_SECONDS
    main()


if __name__ == "__main__":
    run()
