"""Where sockets are and whose; what is cleaned away; who lives and is silent."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest

from kbo_pipeline.core.settings import Settings, load_settings
from kbo_pipeline.operate.processes import children
from kbo_pipeline.operate.processes.children import Beat, Pulse
from kbo_pipeline.operate.runtime import (
    Runtime,
    drop_leftovers,
    is_ours,
    runtime_directory,
    runtime_prefix,
)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory below which a socket has room."""
    with TemporaryDirectory(prefix="kbo-", dir="/tmp") as directory:
        yield Path(directory)


def settings_of(directory: Path) -> Settings:
    return load_settings({"KBO_DATA_DIR": str(directory)}, directory.parent)


@contextmanager
def listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield


def is_reached(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.mark.parametrize("part", [None, "code", "daemon", "web"])
def test_it_is_in_the_data_directory_where_a_socket_has_room_there(
    short: Path, monkeypatch: pytest.MonkeyPatch, part: object
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short / ("t" * 80)))
    settings = settings_of(short / "data")
    with runtime_directory(settings, part, "socket: SOCKET\n") as runtime:  # type: ignore[arg-type]
        assert runtime.path.parent == settings.work_dir
        assert runtime.path.stat().st_mode & 0o777 == 0o700
        assert runtime.workspace.read_text() == f"socket: {runtime.code_socket}\n"
        with listening(runtime.code_socket), listening(runtime.path / "listener-12345678"):
            assert is_reached(runtime.code_socket)
    assert not runtime.path.exists()


@pytest.mark.parametrize("name", ["x" * 70, "données " * 10, "x" * 200])
def test_it_is_elsewhere_where_all_of_ones_own_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
    settings = settings_of(tmp_path / name / "data")
    with runtime_directory(settings, None, "") as runtime:
        assert runtime.path.parent in (Path("/tmp"), Path("/var/tmp"))
        with listening(runtime.code_socket):
            assert is_reached(runtime.code_socket)


def test_a_copy_is_somebody_else_and_leaves_the_original_alone(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, copy = settings_of(short / "data"), settings_of(short / "copy")
    with runtime_directory(original, None, "") as runtime, listening(runtime.code_socket):
        elsewhere = short / "tmp"
        elsewhere.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
        with in_use(original, elsewhere) as second, listening(second.code_socket):
            subprocess.run(["cp", "-a", original.data_dir, copy.data_dir], check=True)
            copied = copy.work_dir / runtime.path.name
            assert copied.exists()
            drop_leftovers(copy, None)
            assert not copied.exists()
            assert runtime_prefix(copy) != runtime_prefix(original)
            assert is_reached(runtime.code_socket)
            assert is_reached(second.code_socket)
            # A run that the original had at work is known to be nobody's here.
            assert is_ours(copy, runtime.code_socket)
            assert not is_ours(original, Path(f"/tmp/{runtime_prefix(copy)}x/code.sock"))


@contextmanager
def in_use(settings: Settings, parent: Path) -> Iterator[Runtime]:
    """A directory of another `kbo start`, which the lock of one would not allow."""
    runtime = Runtime(Path(mkdtemp(prefix=runtime_prefix(settings), dir=parent)), "")
    try:
        yield runtime
    finally:
        runtime.release()


def test_one_that_has_moved_is_somebody_else_and_knows_its_runs(short: Path) -> None:
    before = settings_of(short / "data")
    old = Path(f"/tmp/{runtime_prefix(before)}x/code.sock")
    (short / "data").rename(short / "moved")
    after = settings_of(short / "moved")
    assert is_ours(after, old)
    assert runtime_prefix(after) == runtime_prefix(after)
    assert not old.parent.name.startswith(runtime_prefix(after))
    (short / "moved").rename(short / "data")
    assert old.parent.name.startswith(runtime_prefix(before))  # back where it was


def test_the_name_of_an_older_version_is_known_and_given_up(short: Path) -> None:
    settings = settings_of(short / "data")
    settings.work_dir.mkdir(parents=True)
    (settings.work_dir / "identity").write_text("0123456789ab")
    assert runtime_prefix(settings) != "kbo-0123456789ab-"
    assert is_ours(settings, Path("/tmp/kbo-0123456789ab-x/code.sock"))
    assert not is_ours(settings, Path("/tmp/kbo-ba9876543210-x/code.sock"))
    assert not is_ours(settings, Path(""))


def test_what_a_killed_one_left_goes_and_what_is_in_use_stays(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short))
    settings = settings_of(short / "data")
    prefix = runtime_prefix(settings)
    left = [settings.work_dir / f"{prefix}dead", short / f"{prefix}dead"]
    foreign = [short / "kbo-0123456789ab-x", settings.work_dir / "runs", short / f"{prefix}link"]
    for path in (*left, *foreign[:2]):
        path.mkdir()
        (path / "file").touch()
    foreign[2].symlink_to(foreign[0])
    with in_use(settings, short) as used:
        drop_leftovers(settings, None)
        assert used.path.exists()
    assert not any(path.exists() for path in left)
    assert all((path / "file").exists() for path in foreign)
    drop_leftovers(settings, None)
    assert not used.path.exists()


@pytest.mark.parametrize("cleaned", ["socket", "workspace", "all"])
def test_what_is_cleaned_away_is_noticed_and_made_again(short: Path, cleaned: str) -> None:
    with runtime_directory(settings_of(short / "data"), None, "text") as runtime:
        for name in ("code.sock", "listener-12345678"):
            with listening(runtime.path / name):
                pass
        runtime.note_sockets()
        assert runtime.lost() == []
        if cleaned == "all":
            shutil.rmtree(runtime.path)
        elif cleaned == "socket":
            (runtime.path / "listener-12345678").unlink()
        else:
            runtime.workspace.unlink()
        assert runtime.lost() != []
        assert runtime.has_lost_sockets() == (cleaned != "workspace")
        runtime.restore()
        runtime.drop_sockets()  # as when a new code server is started
        assert runtime.lost() == []
        assert runtime.workspace.read_text() == "text"
        with listening(runtime.code_socket):
            assert is_reached(runtime.code_socket)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(children, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(children, "_BEGINNING_SECONDS", 1.0)
    monkeypatch.setattr(children, "BEAT_SECONDS", 0.05)


def seconds_until_silent(watched: Pulse) -> float:
    began = time.monotonic()
    while not watched.silent(["one"]):
        assert time.monotonic() - began < 20
        time.sleep(0.02)
    return time.monotonic() - began


def test_who_is_silent_for_long_is_told_and_who_is_late_is_not(quick: None) -> None:
    answer = True
    watched = Pulse({"one": lambda: answer})
    assert watched.silent(["one", "another"]) == []
    for _ in range(3):  # late, again and again
        answer = False
        for _ in range(5):
            assert watched.silent(["one"]) == []
        answer = True
        assert watched.silent(["one"]) == []
    answer = False
    assert 0.3 <= seconds_until_silent(watched) < 1.0
    watched.begin("one")
    assert seconds_until_silent(watched) >= 1.0  # who begins has more time


def test_one_question_without_an_answer_after_a_long_pause_is_no_silence(quick: None) -> None:
    """As when we were stopped ourselves, or waited for PostgreSQL."""
    watched = Pulse({"one": iter([True, False, False, True, False]).__next__})
    for pause in (0.0, 0.0, 0.5, 0.5, 0.5):
        time.sleep(pause)
        assert watched.silent(["one"]) == []


BEATING = """
import sys, time
from pathlib import Path
from kbo_pipeline.operate.processes import programs
programs.BEAT_SECONDS = 0.05
programs.beat(Path(sys.argv[1]))
print("beats", flush=True)
while True:
    sum(range(1000))  # as busy as can be
"""


def test_a_busy_process_beats_and_a_stopped_one_does_not(tmp_path: Path, quick: None) -> None:
    file = tmp_path / "beat"
    watched = Pulse({"one": Beat(file)})
    busy = subprocess.Popen([sys.executable, "-c", BEATING, file], stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None
        busy.stdout.readline()
        began = time.monotonic()
        while not file.exists():
            time.sleep(0.01)
        while time.monotonic() - began < 1.0:
            assert watched.silent(["one"]) == []
            time.sleep(0.02)
        os.utime(file, (0, 0))  # a clock that is set back is a sign of life too
        assert watched.silent(["one"]) == []
        busy.send_signal(signal.SIGSTOP)
        assert seconds_until_silent(watched) >= 0.3
        busy.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert watched.silent(["one"]) == []
    finally:
        busy.kill()
        busy.communicate()
