"""Stops an embedded PostgreSQL server whose last user was killed: a process beside each server.

`python -P -m kbo_pipeline.operate.processes.keeper DIRECTORY`. A user that ends in good order stops
the server itself when it is the last; one that is killed cannot. The kernel drops its lock, for
which this waits; it has imported next to nothing until then.
"""

import fcntl
import os
import sys
from pathlib import Path


def main() -> None:
    """Waits until the server in the directory has no user, stops it where it runs, and ends."""
    directory = Path(sys.argv[1])
    own = _open(directory / "keeper.lock")
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # there is one
    while True:
        watched = _open(directory / "watched.lock")
        fcntl.flock(watched, fcntl.LOCK_EX)
        os.close(watched)
        start = _open(directory / "start.lock")
        fcntl.flock(start, fcntl.LOCK_EX)
        if not (directory / "data" / "postmaster.pid").exists():  # its last user has stopped it
            return
        os.close(start)
        from kbo_pipeline.operate.processes.postgres import stop_if_unused

        # The own lock goes while nobody can start the server, which would then have no keeper.
        if stop_if_unused(directory, then=lambda: os.close(own)):
            return


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o600)


if __name__ == "__main__":
    main()
