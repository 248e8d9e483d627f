"""Ctrl-C and SIGTERM where Python cannot raise what they raise."""

import subprocess
import sys

import pytest

IN_A_DESTRUCTOR = """
import os, signal, sys
from kbo_pipeline import interrupts

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
