"""A PostgreSQL of one's own, which can be stopped at once and started again."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg2

from kbo_pipeline.operate.processes import postgres

_PATIENCE = 60.0


class Postgres:
    """A server on 127.0.0.1 that trusts everybody there; runs from `with` on."""

    def __init__(self, directory: Path) -> None:
        """Makes nothing yet.

        Args:
            directory: where its data are; made when it is not there.
        """
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self._account: dict[str, Any] = {}

    @property
    def url(self) -> str:
        """Its address."""
        return f"postgresql://dagster@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> "Postgres":
        self._directory.mkdir(parents=True)
        programs = postgres._programs()
        if os.geteuid() == 0:
            uid, gid = postgres._Server(self._directory)._owner()
            self._account = {"user": uid, "group": gid, "extra_groups": []}
            os.chown(self._directory, uid, gid)
            for path in (self._directory / "data", programs / "postgres"):
                postgres._let_through(path, uid)
        subprocess.run(
            [programs / "initdb", "-D", self._data, "-U", "dagster", "--auth=trust", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._account,
        )
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._end(signal.SIGINT)

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        options = ("-c", f"port={self._port}", "-c", "unix_socket_directories=")
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [postgres._programs() / "postgres", "-D", self._data, "-h", "127.0.0.1", *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                psycopg2.connect(self.url).close()
                return
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        """What `pg_ctl stop -m immediate` does: no farewell, a recovery at the next start."""
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(_PATIENCE)
        self._process = None

    @property
    def _data(self) -> Path:
        return self._directory / "data"
