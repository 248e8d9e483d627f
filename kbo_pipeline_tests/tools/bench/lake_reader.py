"""A reader beside the writer: looks an enterprise up in the lake, again and again.

`python -m kbo_pipeline_tests.tools.bench.lake_reader NUMBER...`; settings from the environment.
When its input ends it prints the seconds of each time as JSON.
"""

import itertools
import json
import sys
import threading
import time

from kbo_pipeline.read.register import read_register

_TIMES_OPEN = 20
"""How often a register that is open is asked, before it is opened anew."""


def main() -> None:
    """Reads until standard input ends."""
    over = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(over,), daemon=True).start()
    numbers, seconds = itertools.cycle(sys.argv[1:]), []
    while not over.is_set():
        with read_register() as register:
            for number in itertools.islice(numbers, _TIMES_OPEN):
                began = time.perf_counter()
                register.enterprise(number)
                seconds.append(time.perf_counter() - began)
                if over.wait(0.05):
                    break
    print(json.dumps(seconds))


def _wait_for_the_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    main()
