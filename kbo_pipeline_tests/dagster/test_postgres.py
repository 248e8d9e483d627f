"""Dagster's storage in real PostgreSQL servers, used by real processes that end in every way."""

import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from psycopg2 import extensions
from sqlalchemy import make_url

import kbo_pipeline
from kbo_pipeline.core.errors import SettingsError, StorageError
from kbo_pipeline.core.files import is_locked
from kbo_pipeline.operate.instance import (
    SilentError,
    limit_silence,
    patience,
    server_answers,
)
from kbo_pipeline.operate.processes import postgres, storage
from kbo_pipeline.operate.processes.postgres import (
    embedded_server_url,
    move_aside,
    moved_aside,
    sqlalchemy_url,
)
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.commands import copy_cluster
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.postgres import (
    PASSWORD,
    connect,
    embedded,
    kill_and_wait,
    leave,
    password_server,
    server,
)

ROOT = Path(kbo_pipeline.__file__).parents[1]

# It looks up now and then: a signal in the instant before `read` enters the kernel is noted, and
# Python would do nothing about it until `read` returns (one of 1,500, Python 3.11).
USER = """
import select, sys
from pathlib import Path
from kbo_pipeline.operate.processes.postgres import embedded_server_url
print(embedded_server_url(Path(sys.argv[1])), flush=True)
while not select.select([sys.stdin], [], [], 0.1)[0]:
    pass
"""

USER_THAT_FORKS = """
import os, sys
from pathlib import Path
from kbo_pipeline.operate.processes.postgres import embedded_server_url
embedded_server_url(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
print("forked", flush=True)
sys.stdin.read()
"""

# The steps of a process that begins and ends, without the half second that Python takes to begin.
USER_THAT_COMES_AND_GOES = """
import sys
from pathlib import Path
import psycopg2
from kbo_pipeline.operate.processes.postgres import _Server
for _ in range(15):
    server = _Server(Path(sys.argv[1]))
    psycopg2.connect(server.enter().replace("+psycopg2", "")).close()
    server.leave()
"""

DAGSTER_WRITER = """
import sys
import dagster as dg
from dagster._serdes import serialize_value
with dg.DagsterInstance.get() as instance:
    instance.add_dynamic_partitions("kbo_extracts", ["0140-full", "0141-update"])
    event = dg.AssetMaterialization("extract_zip", partition="0140-full")
    instance.report_runless_asset_event(event)
    print(serialize_value(instance.get_ref()), instance, instance.info_str().replace("\\n", " "))
    sys.stdout.flush()
    sys.stdin.read()
"""

DAGSTER_READER = """
import sys
import dagster as dg
from dagster._core.instance.ref import InstanceRef
from dagster._serdes import deserialize_value
ref = deserialize_value(sys.argv[1], InstanceRef)  # as a run worker gets it
with dg.DagsterInstance.from_ref(ref) as instance:
    print(instance.get_dynamic_partitions("kbo_extracts"))
    print(instance.get_materialized_partitions(dg.AssetKey("extract_zip")))
    print(type(instance.schedule_storage).__name__, instance.all_instigator_state())
"""


DAGSTER_SURVIVOR = """
import sys
import dagster as dg
with dg.DagsterInstance.get() as instance:
    instance.add_dynamic_partitions("kbo_extracts", ["0140-full"])
    print("added", flush=True)
    sys.stdin.read()
    instance.add_dynamic_partitions("kbo_extracts", ["0141-update"])
    print(instance.get_dynamic_partitions("kbo_extracts"))
"""


class Process:
    """A Python process that says one line when it is ready and ends when its stdin does."""

    def __init__(
        self, script: str, *arguments: object, in_terminal: bool = False, **environment: str
    ) -> None:
        self.terminal, stdin = pty.openpty() if in_terminal else (-1, subprocess.PIPE)
        # The terminal of its own session, as a window is of what runs in it.
        words = ["setsid", "--ctty"] if in_terminal else []
        self.popen = subprocess.Popen(
            [*words, sys.executable, "-c", script, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
        )
        if in_terminal:
            os.close(stdin)

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def close_input(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        self.popen.stdin = None  # communicate() would flush it

    def end(self) -> str:
        said, _ = self.popen.communicate(timeout=60)
        assert self.popen.returncode == 0
        return said

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start_process(script: str, *arguments: object, **named: Any) -> Process:
        processes.append(Process(script, *arguments, **named))
        return processes[-1]

    yield start_process
    for process in processes:
        process.kill()


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Path]:
    """A directory in which there is nothing yet."""
    with embedded(tmp_path / "postgres") as path:
        yield path


@pytest.fixture
def directory(new: Path) -> Path:
    """A directory with a database cluster, whose server does not run."""
    copy_cluster(new)
    return new


def starts(directory: Path) -> int:
    return (directory / "log").read_text().count("LOG:  starting PostgreSQL")


def test_the_first_process_starts_the_server_and_the_last_stops_it(
    new: Path, start: Callable[..., Process]
) -> None:
    first = start(USER, new)
    url = first.line()
    connect(url).close()
    second = start(USER, new)
    assert second.line() == url
    assert starts(new) == 1
    first.end()
    connect(url).close()
    second.end()
    assert server(new) is None
    assert not (new / "data" / "postmaster.pid").exists()
    assert "database system is shut down" in (new / "log").read_text()


def test_a_killed_process_does_not_keep_the_server(
    directory: Path, start: Callable[..., Process]
) -> None:
    killed, last = start(USER, directory), start(USER, directory)
    killed.line(), last.line()
    killed.kill()
    assert server(directory) is not None
    last.end()
    assert server(directory) is None


def keeper(directory: Path) -> list[psutil.Process]:
    """The processes that stop the server when its last user is killed."""
    wanted = ["keeper", str(directory)]
    return [p for p in psutil.process_iter() if command(p)[-2:] == wanted]


def wait_for_keeper(directory: Path) -> psutil.Process:
    deadline = time.monotonic() + 60
    while len(found := keeper(directory)) != 1 or not is_locked(directory / "keeper.lock"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[0]


def wait_for_the_end(directory: Path, way: str) -> None:
    deadline = time.monotonic() + 60
    while server(directory) is not None or keeper(directory):
        assert time.monotonic() < deadline, way
        time.sleep(0.01)
    assert not (directory / "data" / "postmaster.pid").exists(), way  # it was stopped, not killed


@pytest.mark.long
def test_no_way_of_ending_leaves_the_server_behind(
    directory: Path, start: Callable[..., Process]
) -> None:
    """Also those that a process can do nothing about."""
    ways = ["end of input", "closed terminal"]
    ways += ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGKILL"]
    ways += ["SIGABRT", "SIGSEGV", "SIGUSR1", "SIGXCPU", "SIGALRM"]
    for way in ways:
        process = start(USER, directory, in_terminal=way == "closed terminal")
        connect(process.line()).close()
        wait_for_keeper(directory)
        if way == "closed terminal":
            os.close(process.terminal)
        elif way == "end of input":
            process.close_input()
        else:
            process.popen.send_signal(signal.Signals[way])
        process.popen.wait(timeout=60)
        wait_for_the_end(directory, way)
    assert starts(directory) == len(ways)
    assert (directory / "log").read_text().count("database system was interrupted") == 0


def test_a_killed_keeper_is_replaced_by_the_next_user(
    directory: Path, start: Callable[..., Process]
) -> None:
    first = start(USER, directory)
    first.line()
    killed = wait_for_keeper(directory)
    killed.kill()
    while is_locked(directory / "keeper.lock"):
        time.sleep(0.01)
    second = start(USER, directory)
    second.line()
    wait_for_keeper(directory)
    for user in (first, second):
        user.kill()
    wait_for_the_end(directory, "kill")


def test_a_server_that_stands_still_is_stopped_by_its_last_user(
    directory: Path, start: Callable[..., Process]
) -> None:
    user = start(USER, directory)
    connection = connect(user.line())
    found = server(directory)
    assert found is not None
    for process in (found, *found.children()):
        process.suspend()
    user.end()
    connection.close()
    wait_for_the_end(directory, "end")


def test_a_server_whose_socket_was_cleaned_away_is_started_again(directory: Path) -> None:
    url = embedded_server_url(directory)
    shutil.rmtree(str(make_url(url).query["host"]))
    assert embedded_server_url(directory) == url
    connect(url).close()
    assert starts(directory) == 2
    leave(directory)
    assert server(directory) is None


@pytest.mark.parametrize("how", ["-a", "-r"])  # -r loses whose they are, where root copies
def test_a_copied_data_directory_has_a_server_of_its_own(tmp_path: Path, how: str) -> None:
    with embedded(tmp_path / "a") as first, embedded(tmp_path / "b") as second:
        original = connect(embedded_server_url(first))
        with original, original.cursor() as cursor:
            cursor.execute("CREATE TABLE here AS SELECT 42 AS value; CHECKPOINT")
        subprocess.run(["cp", how, first, second], check=True)
        copied = connect(embedded_server_url(second))
        with copied, copied.cursor() as cursor:
            cursor.execute("SELECT value FROM here")
            assert cursor.fetchone() == (42,)
            cursor.execute("DROP TABLE here")
        copied.close()
        leave(second)
        with original, original.cursor() as cursor:
            cursor.execute("SELECT value FROM here")
            assert cursor.fetchone() == (42,)
        original.close()
        leave(first)
        assert server(first) is None
        assert server(second) is None


def test_a_cluster_is_moved_aside_unless_somebody_uses_it(
    new: Path, start: Callable[..., Process]
) -> None:
    assert move_aside(new) is None
    user = start(USER, new)
    connect(user.line()).close()
    with pytest.raises(StorageError, match="is in use; end kbo start"):
        move_aside(new)
    user.end()
    (new / "data.aside-1").mkdir()
    aside = new / "data.aside-2"
    assert move_aside(new) == aside
    assert moved_aside(new) == [new / "data.aside-1", aside]
    assert (aside / "PG_VERSION").exists()
    assert not (new / "data").exists()


def test_processes_of_the_same_instant_get_one_server_and_leave_none(
    new: Path, start: Callable[..., Process]
) -> None:
    processes = [start(USER, new) for _ in range(4)]
    assert len({process.line() for process in processes}) == 1
    assert starts(new) == 1
    for process in processes:
        process.close_input()
    for process in processes:
        assert process.popen.wait(timeout=60) == 0
    assert server(new) is None


def test_who_comes_while_the_last_one_leaves_has_a_server(
    directory: Path, start: Callable[..., Process]
) -> None:
    for process in [start(USER_THAT_COMES_AND_GOES, directory) for _ in range(3)]:
        process.end()
    assert server(directory) is None


def test_a_forked_child_does_not_stop_the_server(
    directory: Path, start: Callable[..., Process]
) -> None:
    parent = start(USER_THAT_FORKS, directory)
    assert parent.line() == "forked"
    assert server(directory) is not None
    parent.end()
    assert server(directory) is None


def test_a_killed_server_is_started_again_with_its_data(directory: Path) -> None:
    connection = connect(embedded_server_url(directory))
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT 42 AS value")
    kill_and_wait(directory)  # its children still have the connection
    again = connect(embedded_server_url(directory))
    with again, again.cursor() as cursor:
        cursor.execute("SELECT value FROM kept")
        assert cursor.fetchone() == (42,)
    again.close()
    leave(directory)
    assert server(directory) is None


@pytest.mark.parametrize("number", ["", str(os.getpid())], ids=["empty", "number of another"])
def test_a_stale_pid_file_does_not_block_the_start(directory: Path, number: str) -> None:
    embedded_server_url(directory)
    leave(directory)
    stale = number and f"{number}\n{directory}/data\n1\n5432\n{directory}/socket\n\n 1 1\nready\n"
    pid_file = directory / "data" / "postmaster.pid"
    pid_file.write_text(stale)
    if os.geteuid() == 0:
        shutil.chown(pid_file, *postgres._Server(directory)._owner())
    connect(embedded_server_url(directory)).close()
    assert pid_file.read_text() != stale
    leave(directory)


@pytest.mark.parametrize("name", ['it\'s "a" $HOME `x` dépôt,ü %41 \\n', "long/" + "x" * 120])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    with embedded(tmp_path / name) as path:
        url = embedded_server_url(path)
        assert embedded_server_url(path) == url
        with connect(url) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('data_directory')")
            assert cursor.fetchone() == (str(path / "data"),)
        leave(path)
        assert server(path) is None


def test_the_server_listens_on_a_private_socket_and_nothing_else(directory: Path) -> None:
    url = embedded_server_url(directory)
    found = server(directory)
    assert found is not None
    for process in (found, *found.children(recursive=True)):
        assert process.net_connections("inet") == []
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
        assert cursor.fetchone() == ("on", "on")
        cursor.execute("SELECT current_setting('listen_addresses'), current_setting('TimeZone')")
        assert cursor.fetchone() == ("", "UTC")
    socket_dir = Path(str(make_url(url).query["host"]))  # elsewhere when this path is too long
    assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "data").stat().st_mode) == 0o700
    assert not stat.S_IMODE(directory.stat().st_mode) & 0o066
    leave(directory)


def test_a_server_that_cannot_start_is_one_line_with_the_log(directory: Path) -> None:
    embedded_server_url(directory)
    leave(directory)
    (directory / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StorageError) as raised:
        embedded_server_url(directory)
    assert "\n" not in str(raised.value)
    assert str(directory / "log") in str(raised.value)
    assert "incompatible" in str(raised.value)
    postgres._servers.pop(directory).forget()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_common_scheme_names_the_installed_driver(scheme: str) -> None:
    assert sqlalchemy_url(f"{scheme}://u:p%40@h:1/d?sslmode=require") == (
        "postgresql+psycopg2://u:p%40@h:1/d?sslmode=require"
    )


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "postgresql://u:secret@h:port/d"])
def test_a_malformed_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DAGSTER_POSTGRES_URL: ") as raised:
        sqlalchemy_url(url)
    assert "secret" not in str(raised.value)


@pytest.fixture(params=["embedded", "with a password"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Yields the environment of a Dagster instance with each kind of storage."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    environment = {"DAGSTER_HOME": str(home), "KBO_DATA_DIR": str(tmp_path / "data dir")}
    if request.param == "embedded":
        with embedded(tmp_path / "data dir" / "postgres"):
            yield environment | {"DAGSTER_POSTGRES_URL": ""}
    else:
        with password_server(tmp_path / "server") as url:
            yield environment | {"DAGSTER_POSTGRES_URL": url}


def test_dagster_keeps_its_state_between_processes(
    environment: dict[str, str], start: Callable[..., Process]
) -> None:
    writers = [start(DAGSTER_WRITER, **environment) for _ in range(2)]
    line = writers[0].line()
    assert writers[1].line()
    assert "KboPostgresStorage" in line
    words = [word for process in psutil.process_iter() for word in command(process)]
    for secret in (PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in line
        assert not [word for word in words if secret in word]
    for writer in writers:
        writer.end()
    ref, _ = line.split(" <", 1)
    assert start(DAGSTER_READER, ref, **environment).end().splitlines() == [
        "['0140-full', '0141-update']",
        "{'0140-full'}",
        "PostgresScheduleStorage []",
    ]
    assert server(Path(environment["KBO_DATA_DIR"]) / "postgres") is None


@pytest.mark.parametrize("environment", ["embedded"], indirect=True)
def test_dagster_survives_a_killed_server(
    environment: dict[str, str], start: Callable[..., Process]
) -> None:
    survivor = start(DAGSTER_SURVIVOR, **environment)
    assert survivor.line() == "added"
    kill_and_wait(Path(environment["KBO_DATA_DIR"]) / "postgres")
    assert survivor.end() == "['0140-full', '0141-update']\n"
    assert server(Path(environment["KBO_DATA_DIR"]) / "postgres") is None


@pytest.mark.parametrize("url", ["u:secret@127.0.0.1:1/d", "u:secret@/d?host=/nowhere/at/all"])
def test_a_server_that_is_not_there_is_one_line_without_the_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    monkeypatch.setattr(storage, "_FIRST_PATIENCE", 1.0)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"postgresql://{url}")
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"^PostgreSQL at \S+, database d: ") as raised:
        storage.KboPostgresStorage.from_config_value(None, {})
    assert time.monotonic() - began > 1.0  # it may be starting
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)
    assert caplog.records == []


def test_who_is_refused_by_a_server_asks_once_and_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "_PAUSE", 60.0)  # before a second attempt
    with password_server(tmp_path / "server") as url:
        wrong = {
            "password authentication failed": url.replace(quote(PASSWORD, safe=""), "wrong-secret"),
            'database "elsewhere" does not exist': url.replace("/postgres", "/elsewhere"),
        }
        for reason, address in wrong.items():
            monkeypatch.setenv("DAGSTER_POSTGRES_URL", address)
            began = time.monotonic()
            with pytest.raises(StorageError, match=reason) as raised:
                storage.KboPostgresStorage.from_config_value(None, {})
            assert time.monotonic() - began < 30
            assert "secret" not in str(raised.value)
            assert PASSWORD not in str(raised.value)
    assert caplog.records == []


@pytest.fixture
def impatient() -> Iterator[None]:
    limit_silence()
    with patience(0.5):
        yield
    extensions.set_wait_callback(None)


def test_a_connection_on_which_nothing_comes_is_given_up(
    directory: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = embedded_server_url(directory)
    connection = connect(url)
    cursor = connection.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    ((backend,),) = cursor.fetchall()
    found = server(directory)
    assert found is not None
    stopped = (found, psutil.Process(backend))
    try:
        for process in stopped:
            process.suspend()
        for ask in (partial(cursor.execute, "SELECT 1"), partial(connect, url)):
            began = time.monotonic()
            with pytest.raises(SilentError, match=r"^no answer in "):
                ask()
            assert 0.5 <= time.monotonic() - began < 5
        monkeypatch.setattr("kbo_pipeline.operate.instance._PING_SECONDS", 0.5)
        assert not server_answers(url)
        assert connection.closed
    finally:
        for process in stopped:
            process.resume()
    assert server_answers(url)
    assert not server_answers("postgresql://u@127.0.0.1:1/d")
    connection = connect(url)
    cursor = connection.cursor()
    cursor.execute("SELECT pg_sleep(0.1), repeat('x', 10000000)")
    assert len(cursor.fetchall()[0][1]) == 10_000_000
    with pytest.raises(SilentError):
        cursor.execute("SELECT pg_sleep(5)")
    leave(directory)


def test_a_lock_that_is_not_free_is_not_taken_for_a_server_that_stands_still(
    directory: Path, impatient: None
) -> None:
    """As when a process of ours was stopped in the middle of a transaction."""
    url = embedded_server_url(directory)
    holder = connect(url)
    holder.cursor().execute("SELECT pg_advisory_lock(%s)", [storage._TABLES_LOCK])
    with pytest.raises(StorageError, match="another process holds what was asked for"):
        storage.KboPostgresStorage(storage._engine(url, directory), embedded=directory)
    holder.close()
    storage.KboPostgresStorage(storage._engine(url, directory), embedded=directory)
    leave(directory)


@pytest.mark.long
@pytest.mark.rare
def test_every_command_says_within_seconds_that_postgres_stands_still(pipeline: Pipeline) -> None:
    zip_file = Sample(enterprises=60, seed=3).write_full(pipeline.directory / "zips", 140)
    key = "0140-full"
    commands = [
        *(["status"], ["status", "--json"], ["status", "--watch"], ["retry"], ["cancel", key]),
        *(["import", zip_file], ["publish", key], ["rollback", key], ["rebuild"], ["doctor"]),
        ["start"],
    ]
    found = server(pipeline.directory / "postgres")
    assert found is not None
    found.suspend()
    try:
        began = time.monotonic()
        with ThreadPoolExecutor(len(commands)) as together:
            ended = list(
                together.map(lambda words: pipeline.kbo_process(*words, check=False), commands)
            )
        # The limit, and the time that so many processes take to begin beside each other.
        assert time.monotonic() - began < 90
    finally:
        found.resume()
    for words, done in zip(commands, ended, strict=True):
        assert done.returncode == 1, words
        said = done.stdout if words == ["doctor"] else done.stderr
        assert "no answer in 10 s" in " ".join(said.split()), (words, said)
        if words != ["doctor"]:
            (line,) = done.stderr.splitlines()
            assert line.startswith("kbo: PostgreSQL at "), words
            assert f"its process {found.pid} stands still: end it" in line


AS_NOBODY_KNOWN = (
    *("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"),
    # To get at Python and the package, wherever they are; it may write what is its own alone.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"),
    reason="another user, and another /etc/passwd: root on Linux only",
)
def test_a_user_without_an_account_is_told_how_to_get_the_embedded_server(tmp_path: Path) -> None:
    data, accounts = tmp_path / "data", tmp_path / "passwd"
    data.mkdir()
    os.chown(data, 12345, 12345)
    environment = {"KBO_DATA_DIR": str(data), "PATH": os.environ["PATH"]}  # and no HOME
    kbo = [*AS_NOBODY_KNOWN, sys.executable, "-m", "kbo_pipeline.cli"]
    run = partial(
        subprocess.run, env=environment, cwd=data, capture_output=True, text=True, check=False
    )
    refused = run([*kbo, "rebuild"])
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    given = re.search(r"add the line (\S+) to /etc/passwd", line)
    assert given is not None, line
    assert "deploy/README.md" in line
    assert "DAGSTER_POSTGRES_URL" in line
    accounts.write_text(f"{Path('/etc/passwd').read_text().rstrip()}\n{given.group(1)}\n")
    other_accounts = f'mount --bind {accounts} /etc/passwd && exec "$@"'
    done = run(["unshare", "--mount", "sh", "-c", other_accounts, "sh", *kbo, "rebuild"])
    assert (done.returncode, done.stderr) == (0, "")
    done = run([*kbo, "rebuild"])  # once it is made, it needs none
    assert (done.returncode, done.stderr) == (0, "")
    assert server(data / "postgres") is None


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
