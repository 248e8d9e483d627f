"""`make demo` and `make practice`: made-up extracts, to see an import and to practise its repair.

The demo starts nothing but `kbo start`, which asks a stand-in portal, downloads, imports and
publishes by itself. The practice is an import of which two batches have failed.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from kbo_pipeline.commands.console import progress_bar, table, terminal
from kbo_pipeline.core.errors import ImportFailedError, NotReadyError
from kbo_pipeline.core.extracts import ExtractKey, key_in_file_name
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.signals import listen
from kbo_pipeline.core.tables import ACTIVITY, ALL_TABLES, Table
from kbo_pipeline.core.text import run
from kbo_pipeline.operate.processes.programs import die_with_parent_command
from kbo_pipeline.read.index import build_index
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline.sample.portal import StandInPortal
from kbo_pipeline.stage.staged import staging_file

_DEMO_DIRECTORY = Path("data/demo")
_PRACTICE_DIRECTORY = Path("data/practice")
_KEY = ExtractKey(140, "full")
_DAMAGED = (3, 7)  # batches
_UPDATES = 3
_MOST_SECONDS = 600.0
_STOP_SECONDS = 90.0


def demo() -> None:
    """Runs an import in a data directory of its own, follows it, and prints the register."""
    listen()
    offered = _DEMO_DIRECTORY / "portal"
    zips = write_sample(_DEMO_DIRECTORY / "zips", Sample(), updates=_UPDATES)
    keys = _offer(zips[: _UPDATES + 1], offered)
    with StandInPortal(offered) as portal:
        os.environ.update(_settings(portal.url))
        os.environ.pop("KBO_DATABASE", None)
        try:
            with _served() as process:
                _follow(keys, process)
        except KeyboardInterrupt:
            sys.exit("demo: stopped; make demo continues from here")
    build_index(load_settings())  # unless kbo start has made it
    _show(load_settings().database_file)


def _offer(files: Sequence[Path], directory: Path) -> list[ExtractKey]:
    """Links ZIPs into the directory that the portal serves."""
    make_private(directory)
    for file in files:
        link = directory / file.name
        link.unlink(missing_ok=True)
        link.hardlink_to(file)
    return [key for file in files if (key := key_in_file_name(file.name))]


def _settings(portal_url: str) -> dict[str, str]:
    with socket.socket() as probe:  # the usual port may be that of a real `kbo start`
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "KBO_DATA_DIR": str(_DEMO_DIRECTORY),
        "KBO_PORTAL_URL": portal_url,
        "KBO_USERNAME": "demo",
        "KBO_PASSWORD": "demo",
        "KBO_POLL_SECONDS": "5",
        "KBO_UI_PORT": str(port),
    }


@contextmanager
def _served() -> Iterator[subprocess.Popen[bytes]]:
    with (_DEMO_DIRECTORY / "start.log").open("wb") as log:
        process = subprocess.Popen(
            die_with_parent_command("kbo_pipeline.cli", "start"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches us alone
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_SECONDS)


def _follow(keys: Sequence[ExtractKey], process: subprocess.Popen[bytes]) -> None:
    """Shows a bar for each extract until it is published.

    Raises:
        ImportFailedError: one failed, `kbo start` has ended, or it takes too long.
    """
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.runs.status import read_status

    began = time.monotonic()
    print(f"Web UI, as long as this runs: http://127.0.0.1:{load_settings().ui_port}", flush=True)
    settings = load_settings()
    with open_instance(settings) as instance:
        for key in keys:
            status = ""
            with progress_bar(instance, settings, key):
                while status != "completed":
                    if process.poll() is not None or time.monotonic() - began > _MOST_SECONDS:
                        log = _DEMO_DIRECTORY / "start.log"
                        raise ImportFailedError(f"not all published; see {log}")
                    time.sleep(1)
                    with suppress(NotReadyError):  # the portal has not been asked yet
                        now = read_status(instance, settings, key)
                        status = now.status
                        if status == "failed":
                            raise ImportFailedError(f"{key}: {now.error}")
            seconds = time.monotonic() - began
            print(f"{key}: published, {seconds:.0f} s after the start", flush=True)


def _show(database: Path) -> None:
    counts = table("table", "current rows", "versions", numbers=("current rows", "versions"))
    names = table("enterprise_number", "primary_name")
    with duckdb.connect(str(database), read_only=True) as register:
        ((key, day),) = register.execute(
            "SELECT id, snapshot_date FROM import_jobs ORDER BY extract_number DESC LIMIT 1"
        ).fetchall()
        for name in sorted(each.name for each in ALL_TABLES):
            query = f"SELECT count(*) FILTER (_is_current), count(*) FROM main.{name}"
            (row,) = register.execute(query).fetchall()
            counts.add_row(name, *(f"{count:,}" for count in row))
        for row in register.execute(
            "SELECT enterprise_number, left(primary_name, 60) FROM current.enterprise"
            " WHERE type_of_enterprise = '2' ORDER BY enterprise_number LIMIT 5"
        ).fetchall():
            names.add_row(*row)
    print(f"\nIn the register after {key} (made-up data of {day})", flush=True)
    terminal().print(counts)
    terminal().print(names)
    python = Path(os.path.relpath(sys.executable)).parent
    print(f"\nRegister: {os.path.relpath(database)}  (any DuckDB client from 1.4 on opens it)")
    print(f"Web UI:   KBO_DATA_DIR={_DEMO_DIRECTORY} {python}/kbo start")
    print(f"Search:   KBO_DATA_DIR={_DEMO_DIRECTORY} {python}/kbo serve")
    print("          and http://127.0.0.1:3001/kbo/search?q=bakerij in a browser")


def practice() -> None:
    """Imports a made-up Full into a directory of its own, and damages its staging file."""
    from kbo_pipeline.commands.runs import finish_extract, run_job
    from kbo_pipeline.operate.instance import open_instance
    from kbo_pipeline.operate.runs.partitions import register_extract

    listen()
    if _PRACTICE_DIRECTORY.exists():
        sys.exit(f"practice: {_PRACTICE_DIRECTORY} is there already; remove it to start over")
    zip_file = Sample().write_full(_PRACTICE_DIRECTORY / "zips", _KEY.number)
    os.environ["KBO_DATA_DIR"] = str(_PRACTICE_DIRECTORY)
    os.environ.pop("KBO_DATABASE", None)
    settings = load_settings()
    with open_instance(settings) as instance:
        register_extract(instance, _KEY)
        source = {"ops": {"extract_zip": {"config": {"source_file": str(zip_file.absolute())}}}}
        run_job(instance, "stage_extract", _KEY, partition_key=str(_KEY), run_config=source)
        damage(staging_file(settings.staging_dir, _KEY), _DAMAGED)
        try:
            finish_extract(instance, _KEY, {})
        except ImportFailedError as error:
            print(error)
        else:
            sys.exit("practice: nothing has failed")
    staged = staging_file(_PRACTICE_DIRECTORY / "staging", _KEY)
    print(
        f"\nTwo batches have failed: rows are missing in {staged}.\n"
        "Look at it, then run them again, for which the ZIP is staged again:\n\n"
        f"  export KBO_DATA_DIR={_PRACTICE_DIRECTORY}\n"
        "  .venv/bin/kbo status\n"
        f"  .venv/bin/kbo retry {_KEY}"
    )


def damage(file: Path, batches: Sequence[int], table: Table = ACTIVITY) -> Path:
    """Removes a row of a table from each of these staged batches; returns an intact copy."""
    sound = file.with_suffix(".sound")
    shutil.copyfile(file, sound)
    with duckdb.connect(str(file)) as connection:
        for number in batches:
            connection.execute(
                f"DELETE FROM main.{table.name} WHERE rowid = (SELECT min(row_sequence)"
                f" FROM import_staging_{table.name} WHERE batch_number = $1)",
                [number],
            )
    return sound


if __name__ == "__main__":
    if sys.argv[1:] == ["practice"]:
        run("practice", practice)
    else:
        run("demo", demo)
