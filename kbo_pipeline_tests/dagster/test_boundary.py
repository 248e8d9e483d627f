"""Whatever is around it, `kbo` says in one line what is wrong, and ends with a code for it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import dagster as dg
import duckdb
import psycopg2
import pytest
from dagster import DagsterError
from sqlalchemy.exc import OperationalError

from kbo_pipeline.cli import main
from kbo_pipeline.core.errors import PortalError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.text import OUT_OF_MEMORY, line_of
from kbo_pipeline.defs.step import message_of
from kbo_pipeline.operate.runs.status import failure_message
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.commands import in_process
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.zips import rows_for, write_extract

NUMBER = "0400.000.086"
NAME = "Zażółć gęślą ω → Père & Fils"  # of these, ISO 8859-15 has é, è and &
OBEYING = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")
IS_ROOT = os.geteuid() == 0
NEEDS_SETPRIV = IS_ROOT and shutil.which(OBEYING[0]) is None


@dataclass
class Place:
    """A published register, and what a command finds around it."""

    directory: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def environment(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KBO_", "DAGSTER_"))}
        ours = {"KBO_DATA_DIR": str(self.data), "PYTHONPATH": str(REPOSITORY)}
        return inherited | ours | self.variables | dict(variables or {})

    def here(self, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        """Runs a command in this process: what it says does not depend on the process."""
        done = in_process(*arguments, environment=self.environment(), cwd=self.directory)
        said = (done.stdout.encode(), done.stderr.encode())
        return subprocess.CompletedProcess(done.args, done.returncode, *said)

    def kbo(
        self,
        *arguments: str | Path,
        stdout: str | None = None,
        obeying: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command, as root without root's right to pass over permissions when told so."""
        command = (sys.executable, "-m", "kbo_pipeline.cli", *map(str, arguments))
        with open(stdout or os.devnull, "wb") as output:
            return subprocess.run(
                (*(OBEYING if obeying and IS_ROOT else ()), *command),
                env=self.environment(variables),
                cwd=self.directory,
                stdout=subprocess.PIPE if stdout is None else output,
                stderr=subprocess.PIPE,
                timeout=120,
                check=False,
            )


def the_line(done: subprocess.CompletedProcess[bytes], *, code: int = 1) -> str:
    """The one line of a command that failed."""
    said = done.stderr.decode(errors="replace")
    assert done.returncode == code, said
    lines = said.splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("kbo: ")
    assert "Traceback" not in said + (done.stdout or b"").decode(errors="replace")
    return lines[0]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a published register, made once."""
    directory = tmp_path_factory.mktemp("published")
    rows = rows_for([NUMBER, "0400.000.185"], "one")
    rows["denomination"] = [
        (*row[:-1], NAME) if row[0] == NUMBER else row for row in rows["denomination"]
    ]
    Core(directory / "data").import_zip(write_extract(directory, ExtractKey(140, "full"), rows))
    return directory


@pytest.fixture
def place(published: Path, tmp_path: Path) -> Place:
    shutil.copytree(published, tmp_path / "place")
    return Place(tmp_path / "place")


@contextmanager
def only_readable(directory: Path) -> Iterator[None]:
    """Nothing can be written into a directory and those in it."""
    found = [directory, *(path for path in directory.rglob("*") if path.is_dir())]
    for path in found:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in found:
            path.chmod(0o755)


READING = [
    ("show", NUMBER),
    ("find", "fils"),
    ("changes", "140"),
    ("export", "parquet"),
    ("show", "--json", NUMBER),
]
NO_ZIP = ("verify", "ż.zip")


def locale_variables(name: str, source: str, charset: str, directory: Path) -> dict[str, str]:
    """The variables of a terminal of that locale, which is made here."""
    if shutil.which("localedef") is None:
        pytest.skip("no localedef, to make the locale with")
    made = directory / "locales"
    made.mkdir()
    command = ["localedef", "-i", source, "-f", charset, str(made / name)]
    subprocess.run(command, capture_output=True, check=False)  # it ends with 1 when it warns
    if not (made / name).is_dir():
        pytest.skip(f"localedef has no {source} or no {charset}")
    return {"LOCPATH": str(made), "LC_ALL": name}


TERMINALS = ["fr_BE", "nl_BE@euro", "ascii", "C", "latin-1 by PYTHONIOENCODING"]


def terminal(name: str, directory: Path) -> tuple[dict[str, str], str]:
    """The variables of a terminal, and its encoding."""
    if name == "fr_BE":
        found = locale_variables(name, "fr_BE", "ISO-8859-1", directory)
        del found["LC_ALL"]
        return found | {"LANG": name, "LC_CTYPE": name}, "latin-1"
    if name == "nl_BE@euro":
        return locale_variables(name, "nl_BE", "ISO-8859-15", directory), "iso8859-15"
    if name == "ascii":
        return {"PYTHONIOENCODING": "ascii"}, "ascii"
    if name == "C":
        return {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "ascii"
    return {"PYTHONIOENCODING": "latin-1"}, "latin-1"


@pytest.mark.parametrize("name", TERMINALS)
def test_what_a_terminal_cannot_show_is_a_question_mark_there(place: Place, name: str) -> None:
    variables, encoding = terminal(name, place.directory)
    shown = NAME.encode(encoding, errors="replace")
    assert b"?" in shown
    for command in READING[:3]:
        done = place.kbo(*command, variables=variables)
        said = [line for line in done.stderr.splitlines() if b"kbo index makes it" not in line]
        assert (done.returncode, said) == (0, []), command
        assert shown in done.stdout or command[0] == "changes", command
    the_line(place.kbo(*NO_ZIP, variables=variables))


def test_json_is_whole_on_any_terminal(place: Place) -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = place.kbo("show", "--json", NUMBER, variables={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0
        assert done.stdout.isascii()
        assert duckdb.sql(f"SELECT $json$ {done.stdout.decode()} $json$::JSON").fetchone()
        assert "\\u017c" in done.stdout.decode()


@pytest.mark.parametrize("command", [*READING[2:], ("--help",), ("sample", "zips")])
def test_an_output_that_is_full_is_named(place: Place, command: Sequence[str]) -> None:
    assert the_line(place.kbo(*command, stdout="/dev/full")) == (
        "kbo: standard output: No space left on device; free disk space, then run the command again"
    )


@pytest.mark.parametrize("command", [READING[0], ("sample", "zips"), ("status",)])
def test_a_working_directory_that_is_gone_is_named(place: Place, command: Sequence[str]) -> None:
    gone = place.directory / "gone"
    gone.mkdir()
    script = (
        f"cd {gone}; rmdir {gone}; exec {sys.executable} -m kbo_pipeline.cli {' '.join(command)}"
    )
    environment = os.environ | {"KBO_DATA_DIR": "data", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, timeout=60, check=False
    )
    assert the_line(done) == "kbo: the working directory is gone; cd to one that is there"


NOT_DIRECTORIES: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("x"),
    "a loop": lambda path: path.symlink_to(path),
    "a pipe": os.mkfifo,
}
WRITING = [("pause",), ("export", "parquet"), ("status",), ("start",), ("import", "full.zip")]


@pytest.mark.parametrize(
    ("kind", "command"),
    [*(("a loop", command) for command in WRITING), ("a file", WRITING[2]), ("a pipe", WRITING[0])],
)
def test_a_data_directory_that_is_none_is_named(
    place: Place, kind: str, command: Sequence[str]
) -> None:
    Sample(enterprises=50).write_full(place.directory, 140).rename(place.directory / "full.zip")
    shutil.rmtree(place.data)
    NOT_DIRECTORIES[kind](place.data)
    line = the_line(place.here(*command))
    assert f"{place.data}" in line
    assert "; " in line


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
@pytest.mark.parametrize("command", ["export {}", "sample {}/zips"])
def test_a_target_that_cannot_be_written_is_named(place: Place, kind: str, command: str) -> None:
    target = place.directory / "target"
    NOT_DIRECTORIES[kind](target)
    assert "target" in the_line(place.here(*command.format(target).split()))


@pytest.mark.parametrize("command", ["export /proc/x", "sample /proc/x", "export /dev/full"])
def test_a_target_of_the_system_is_named_without_advice_on_its_room(
    place: Place, command: str
) -> None:
    line = the_line(place.here(*command.split()))
    assert os.path.dirname(command.split()[1]) in line
    assert "free" not in line


@pytest.mark.skipif(NEEDS_SETPRIV, reason="root needs setpriv to obey permissions")
def test_files_that_may_not_be_read_or_written_are_named(place: Place) -> None:
    with only_readable(place.directory):
        for command in ("pause", "export parquet", "status", "start", "sample zips"):
            line = the_line(place.kbo(*command.split(), obeying=True))
            assert "Permission denied" in line, command
        done = place.kbo("show", NUMBER, obeying=True)  # which writes nothing
        assert (done.returncode, done.stderr) == (0, b"")
    env_file = place.directory / ".env"
    env_file.write_text("KBO_USERNAME=me\n")
    env_file.chmod(0o000)
    for command in (f"show {NUMBER}", "status"):
        line = the_line(place.kbo(*command.split(), obeying=True))
        assert line == f"kbo: {env_file}: cannot be read: Permission denied"
    env_file.unlink()
    (place.data / "kbo.duckdb").chmod(0o000)
    for reading in READING[:2]:
        assert f"{place.data / 'kbo.duckdb'}" in the_line(place.kbo(*reading, obeying=True))


@pytest.mark.skipif(not IS_ROOT or NEEDS_SETPRIV, reason="only root makes files of others")
def test_files_of_another_owner_are_named(place: Place) -> None:
    for path in (place.data, *place.data.rglob("*")):
        os.chown(path, 65534, 65534)
        path.chmod(0o700 if path.is_dir() else 0o600)
    for command in ("pause", "status", "export parquet", "start", f"show {NUMBER}"):
        assert "; " in the_line(place.kbo(*command.split(), obeying=True)), command


def test_a_postgresql_that_takes_no_writes_is_named(tmp_path: Path) -> None:
    place = Place(tmp_path, {"PGOPTIONS": "-c default_transaction_read_only=on"})
    line = the_line(place.kbo("status"))
    assert "read-only transaction" in line
    assert "PostgreSQL at " in line


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("statsu", "no command 'statsu'; did you mean status?; see kbo --help"),
        ("frobnicate", "no command 'frobnicate'; see kbo --help"),
        ("status --jsno", "status: no such option '--jsno'. Did you mean '--json'?; see kbo"),
        ("--frobnicate", "no such option '--frobnicate'; see kbo --help"),
        ("import", "import: missing argument 'ZIP...'; see kbo import --help"),
        ("find --limit 0", "find: invalid value for '--limit': 0 is not"),
        ("find --limit many", "find: invalid value for '--limit': 'many' is not"),
        ("show 1 2", "show: got unexpected extra argument (2); see kbo show --help"),
    ],
)
def test_a_wrong_command_line_is_one_line(place: Place, command: str, says: str) -> None:
    assert the_line(place.here(*command.split()), code=2).startswith(f"kbo: {says}")


def test_help_lists_every_command_once_by_task_and_whole(place: Place) -> None:
    text = place.here("--help").stdout.decode()
    assert "..." not in text.replace("[ARGS]...", "")
    for name, command in main.commands.items():
        assert text.count(f"\n  {name} ") == 1
        words = (command.help or "").split(".")[0].split()
        assert " ".join(words) in " ".join(text.split())
    tasks = [line for line in text.splitlines() if line.endswith(":") and line[:1] != " "]
    assert tasks == ["Options:", "Read:", "Import:", "Operate:", "Repair:"]
    assert isinstance(main, click.Group)


STOPPED = """
import os, signal, sys
import click
from kbo_pipeline.cli import Commands
def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
names = ("show", "import")
Commands("kbo", {name: click.Command(name, callback=stop) for name in names}).main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("command", "says"),
    [("show", "stopped"), ("import", "stopped; kbo status says how far it came")],
)
def test_what_was_stopped_is_told_how_far_it_came_where_that_is_known(
    command: str, says: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, command], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert the_line(done, code=130) == f"kbo: {says}"


@pytest.mark.parametrize("program", ["demo", "practice"])
def test_a_program_that_is_no_command_says_it_in_one_line_too(program: str, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    done = subprocess.run(
        [sys.executable, "-m", "kbo_pipeline.commands.demo", program],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{program}: data/{program}: Not a directory; ")


def test_a_step_that_is_out_of_memory_names_the_setting() -> None:
    @dg.op
    def eats() -> None:
        raise duckdb.OutOfMemoryException("Out of Memory Error: failed to pin block")

    @dg.job
    def eating() -> None:
        eats()

    result = eating.execute_in_process(raise_on_error=False)
    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert failure_message(event) == OUT_OF_MEMORY
    assert message_of(duckdb.OutOfMemoryException("Out of Memory Error")) == OUT_OF_MEMORY


def caught(raised: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise raised from cause
    except BaseException as error:
        return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), OUT_OF_MEMORY),
        (duckdb.OutOfMemoryException("Out of Memory Error: failed\nHint"), OUT_OF_MEMORY),
        (
            duckdb.IOException("IO Error: Could not read\nmore"),
            "DuckDB: IO Error: Could not read; kbo doctor says more",
        ),
        (
            OperationalError("SELECT 'canary'", {}, psycopg2.OperationalError("gone\n  away")),
            "PostgreSQL: gone; kbo doctor says more",
        ),
        (
            FileNotFoundError(2, "No such file or directory", b"/a/\xff"),
            "/a/\udcff: No such file or directory; name a place that is there",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), None),
        (TimeoutError("timed out"), "timed out; kbo doctor says more"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), None),
        (UnicodeEncodeError("ascii", "canary é", 7, 8, "bad"), None),
        (PortalError("the portal\n  sleeps"), "the portal sleeps"),
        (caught(DagsterError("wraps"), OSError(28, "No space left on device", "/x")), None),
        (DagsterError("first\nsecond"), "Dagster: first; kbo doctor says more"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_others_is_one_line(error: BaseException, line: str | None) -> None:
    said = line_of(error)
    assert said is not None
    assert len(said.splitlines()) == 1
    assert "canary" not in said
    assert said == (line or said)
    if error.__cause__ is not None:
        assert said.startswith("/x: No space left on device; free disk space")


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    for error in (KeyError("x"), AssertionError(), TypeError("x"), RuntimeError("x")):
        assert line_of(error) is None
