"""Runs a Python module in a process that the kernel ends together with its parent, where it can.

`python -P -m kbo_pipeline.operate.processes.parent_death PARENT MODULE ARGUMENT...`: nothing is
left to clean up then after `kill -9` of the parent. The kernel ties to the thread that started the
process, not to its process.

Without `-P`, `python -m` looks for modules in the working directory first, and would execute a file
`queue.py` there in the place of Python's own.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Linux: <sys/prctl.h>


def die_with_parent_command(*module: str) -> list[str]:
    """The command that runs a module, with its arguments, as a child of this process."""
    return [
        sys.executable,
        "-P",
        "-m",
        "kbo_pipeline.operate.processes.parent_death",
        str(os.getpid()),
        *module,
    ]


def main() -> None:
    """Ties this process to its parent, then becomes the module."""
    parent, *module = sys.argv[1:]
    os.environ["PYTHONSAFEPATH"] = "1"  # for whatever Python the module starts
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before it could take us along
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-P", "-m", *module])


if __name__ == "__main__":
    main()
