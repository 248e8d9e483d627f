"""Processes that tests start, signal and search: nothing of them may stay."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from kbo_pipeline.operate.processes.start import answers
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.server import PATIENCE, Server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], object], what: str, process: "Started | None" = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if process is not None:
            assert process.popen.poll() is None, f"{what}: it has ended: {process.output()}"
        assert time.monotonic() < deadline, f"{what}: not in {PATIENCE} s"
        time.sleep(0.1)


class Started:
    """A process with its output in a file, so that no full pipe can stop it."""

    def __init__(
        self, *arguments: str | Path, environment: Mapping[str, str], log: Path, cwd: Path
    ) -> None:
        self.log = log
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                list(map(str, arguments)),
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # As in a terminal: a shell without job control has its children ignore SIGINT.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text()

    def says(self, text: str) -> bool:
        return text in self.output()

    def end(self, number: signal.Signals, whole_group: bool = False) -> int:
        """Sends a signal, to the whole group as a terminal does; returns the exit code."""
        if whole_group:
            os.killpg(self.popen.pid, number)
        else:
            self.popen.send_signal(number)
        return self.popen.wait(60)


class Terminal:
    """A pseudo-terminal for a process to write to; what it showed."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.shown = b""
        self._reader = threading.Thread(target=self._read)

    @property
    def text(self) -> str:
        """What it showed, without the codes that move and colour it."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown.decode(errors="replace"))

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self.ours, 4096)
            except OSError:  # Linux says EIO where the last process has closed its end
                return
            if not chunk:
                return
            self.shown += chunk

    def __enter__(self) -> "Terminal":
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.theirs)
        self._reader.join()
        os.close(self.ours)


@contextmanager
def started(
    pipeline: Pipeline,
    *arguments: str | Path,
    settings: Mapping[str, str] | None = None,
    cwd: Path = REPOSITORY,
) -> Iterator[Started]:
    """Runs `python -m ...`; whatever is left of its group at the end is killed."""
    pipeline.directory.mkdir(parents=True, exist_ok=True)
    process = Started(
        *(sys.executable, "-m", *arguments),
        environment=pipeline.environment | dict(settings or {}),
        log=pipeline.directory / f"output-{time.monotonic_ns()}",
        cwd=cwd,
    )
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            os.killpg(process.popen.pid, signal.SIGKILL)
            process.popen.wait()


@contextmanager
def web_server(pipeline: Pipeline, *options: str) -> Iterator[tuple[Server, Started]]:
    """The web server of a pipeline alone: it knows no code."""
    workspace, port = pipeline.directory / "workspace.yaml", free_port()
    workspace.write_text("load_from: []")
    arguments: list[str | Path] = ["--port", str(port), "--workspace", workspace, *options]
    server = Server(f"http://127.0.0.1:{port}")
    home = {"DAGSTER_HOME": str(pipeline.directory / "dagster_home")}
    with started(
        pipeline, "kbo_pipeline.operate.processes.webserver", *arguments, settings=home
    ) as process:
        wait_until(partial(answers, f"{server.address}/server_info"), "web server", process)
        yield server, process


def at_once(
    code: str,
    *arguments: str | Path,
    environment: Mapping[str, str],
    prepare: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Runs the same code in two processes at once; what each prints at its end, as JSON.

    The code prints `ready` and then waits for a line of its stdin. `prepare` is called when both
    have come so far.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    prepare()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def processes_of(directory: Path) -> list[list[str]]:
    """The command lines of processes that work on a data directory."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.environ().get("KBO_DATA_DIR") == str(directory) or any(
                str(directory) in word for word in words
            ):
                found.append(words)
        except psutil.Error:
            continue
    return found


def noise(text: str) -> list[str]:
    """Lines that nobody should have to read: Python's warnings and tracebacks.

    That Dagster would rather see its `dg` used than its `dagster` is no fault of ours.
    """
    return [
        line
        for line in text.splitlines()
        if ("Warning:" in line or "Traceback" in line) and " is superseded " not in line
    ]


def noise_in_logs(directory: Path) -> dict[str, list[str]]:
    """Noise in the logs of a data directory: of servers, and of each run's worker."""
    logs = [*directory.rglob("*.log"), *directory.rglob("*.err"), *directory.rglob("*.out")]
    found = {str(log): noise(log.read_text(errors="replace")) for log in logs}
    return {name: lines for name, lines in found.items() if lines}
