"""`kbo start`: code location, daemon and web UI as children of one process. No Dagster here."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import yaml

from kbo_pipeline.errors import SettingsError, StorageError
from kbo_pipeline.home import prepare_dagster_home
from kbo_pipeline.locks import exclusive_lock
from kbo_pipeline.settings import Settings

_START_SECONDS = 90.0
_STOP_SECONDS = 20.0


class _Stopped(Exception):
    """A signal asked us to end."""


def serve(settings: Settings, report: Callable[[str], None], *, before: Callable[[], None]) -> None:
    """Runs everything until Ctrl-C or SIGTERM; ends all children when it ends.

    Args:
        settings: the settings; the children get them as environment.
        report: takes a line for the person who watches.
        before: called once nobody else can start on this data directory, and nothing runs yet.

    Raises:
        StorageError: another `kbo start` runs on this data directory (names its process), or a
            child ended by itself.
        SettingsError: the port is taken.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(settings.work_dir / "start.lock"):
        _check_port(settings.ui_port)
        prepare_dagster_home(settings)
        before()
        runtime = Path(tempfile.mkdtemp(prefix="kbo-"))  # short: a socket's path has 107 bytes
        try:
            with _ended_by_signals(), _children() as children:
                _start(settings, runtime, children, report)
                _watch(children)
        except _Stopped:
            report("stopped")
        finally:
            shutil.rmtree(runtime)


def _start(
    settings: Settings,
    runtime: Path,
    children: dict[str, subprocess.Popen[bytes]],
    report: Callable[[str], None],
) -> None:
    code_socket = runtime / "code.sock"
    workspace = runtime / "workspace.yaml"
    location = {"grpc_server": {"socket": str(code_socket), "location_name": "kbo_pipeline"}}
    workspace.write_text(yaml.safe_dump({"load_from": [location]}))
    environment = {**os.environ, **_exported(settings)}

    def start(name: str, *arguments: str) -> None:
        log = settings.work_dir / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as out:
            children[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we end them in order
            )

    report(f"logs: {settings.work_dir / 'logs'}")
    start(
        "code",
        *("dagster", "code-server", "start", "-m", "kbo_pipeline.definitions"),
        *("-s", str(code_socket), "--location-name", "kbo_pipeline"),
    )
    _wait_until(code_socket.exists, children)
    start("daemon", "dagster._daemon", "run", "-w", str(workspace))
    start(
        "webserver",
        *("dagster_webserver", "-h", "127.0.0.1", "-p", str(settings.ui_port)),
        *("-w", str(workspace)),
    )
    address = f"http://127.0.0.1:{settings.ui_port}"
    _wait_until(lambda: _answers(f"{address}/server_info"), children)
    report(f"web UI: {address}  (Ctrl-C ends everything)")


def _exported(settings: Settings) -> dict[str, str]:
    """What children could not find out alone: paths that were relative, values of `.env`."""
    values = {
        "KBO_DATA_DIR": str(settings.data_dir),
        "KBO_DATABASE": str(settings.database),
        "KBO_PORTAL_URL": settings.portal_url,
        "KBO_USERNAME": settings.username,
        "KBO_PASSWORD": settings.password,
        "DAGSTER_POSTGRES_URL": settings.postgres_url,
        "DAGSTER_HOME": str(settings.dagster_home),
        "KBO_BATCH_ROWS": str(settings.batch_rows),
        "KBO_MAX_BATCHES": str(settings.max_batches),
        "KBO_POLL_SECONDS": str(settings.poll_seconds),
        "KBO_UI_PORT": str(settings.ui_port),
        "KBO_KEEP_PUBLISHED": str(settings.keep_published),
        "KBO_KEEP_EXTRACTS": str(settings.keep_extracts),
        "KBO_KEEP_ZIPS_DAYS": str(settings.keep_zips_days),
        "KBO_STALE_HOURS": str(settings.stale_hours),
        "KBO_ALERT_WEBHOOK": settings.alert_webhook,
    }
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _children() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Ends, in the reverse order of their start, all children that were put into the dict."""
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        yield children
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave children
        for child in reversed(children.values()):
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and whatever it started; its session is its own."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_until(ready: Callable[[], bool], children: dict[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        _check_alive(children)
        if time.monotonic() > deadline:
            raise StorageError(f"{list(children)[-1]}: not ready in {_START_SECONDS:.0f} s")
        time.sleep(0.1)


def _watch(children: dict[str, subprocess.Popen[bytes]]) -> None:
    while True:
        _check_alive(children)
        time.sleep(0.5)


def _check_alive(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, child in children.items():
        if child.poll() is not None:
            raise StorageError(
                f"{name}: ended with code {child.returncode}; see its log, then start again"
            )


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise SettingsError(
                f"KBO_UI_PORT: port {port} is taken; stop what uses it or set another"
            ) from None
