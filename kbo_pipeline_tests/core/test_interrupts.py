"""Ctrl-C and its like: where Python cannot raise what they raise, and who ignores them."""

import subprocess
import sys

import pytest

IN_A_DESTRUCTOR = """
import os, signal, sys
from kbo_pipeline.core import signals as interrupts

class Victim:
    def __del__(self):
        {what}

interrupts.listen()
Victim()
print(interrupts.received())
"""


@pytest.mark.parametrize(
    ("what", "came", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", "True", False),
        ("os.kill(os.getpid(), signal.SIGTERM)", "True", False),
        ("os.kill(os.getpid(), signal.SIGHUP)", "True", False),
        ("os.kill(os.getpid(), signal.SIGQUIT)", "True", False),
        ("raise ValueError('a defect')", "False", True),
        ("raise SystemExit", "False", True),
    ],
)
def test_a_stop_in_a_destructor_is_noted_and_told_without_a_traceback(
    what: str, came: str, told: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_DESTRUCTOR.format(what=what)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == came
    assert ("Traceback" in done.stderr) == told


SIGNALED = """
import os, signal, sys
from kbo_pipeline.core import signals as interrupts

interrupts.listen()
try:
    with interrupts.postponed() as came:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        print("went on", came())
    if came():
        raise KeyboardInterrupt
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    print("ignored")
except KeyboardInterrupt:
    print("ended", interrupts.received())
"""


@pytest.mark.parametrize(
    ("number", "ignored", "said"),
    [
        *((name, "", ["went on True", "ended True"]) for name in ("SIGHUP", "SIGQUIT", "SIGTERM")),
        ("SIGINT", "INT", ["went on True", "ended True"]),  # as in a shell's background
        ("SIGHUP", "HUP", ["went on False", "ignored"]),  # as under nohup
    ],
)
def test_each_signal_that_ends_lets_a_batch_end_first(
    number: str, ignored: str, said: list[str]
) -> None:
    trap = f"trap '' {ignored}; " if ignored else ""
    done = subprocess.run(
        ["sh", "-c", f'{trap}exec "$@"', "sh", sys.executable, "-c", SIGNALED, number],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == said, done.stderr
