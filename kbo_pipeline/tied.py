"""Runs a Python module in a process that the kernel ends together with its parent, where it can.

`python -m kbo_pipeline.tied PARENT MODULE ARGUMENT...`: nothing is left to clean up then after
`kill -9` of the parent. The kernel ties to the thread that started the process, not to its process.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Linux: <sys/prctl.h>


def main() -> None:
    """Ties this process to its parent, then becomes the module."""
    parent, *module = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before it could take us along
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", *module])


if __name__ == "__main__":
    main()
