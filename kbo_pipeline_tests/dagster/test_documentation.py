"""README and docs: every link leads somewhere, every command exists, and most of them are run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import click
import pytest

from kbo_pipeline.cli import main
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import CONTACT, ESTABLISHMENT
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.zips import csv_text, keys_for, rows_for, write_extract

DOCUMENTS = [
    *sorted(REPOSITORY.glob("*.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "deploy").glob("*.md")),
]
README, OPERATING = REPOSITORY / "README.md", REPOSITORY / "docs" / "operating.md"
OF_THE_SYSTEM = {"cat", "cd", "chmod", "cp", "curl", "echo", "export", "git", "mv", "psql", "rm"}
OF_AN_ADMINISTRATOR = {"docker", "helm", "install", "kubectl", "ss", "sudo"}
DAGSTER_AND_PYTHON = {"dagster", "pip", "pytest", "python", "run"}
PROGRAMS = OF_THE_SYSTEM | OF_AN_ADMINISTRATOR | DAGSTER_AND_PYTHON
LINK = re.compile(r"\]\(([^)\s]+)\)")
RECIPE = re.compile(r"^`\S+`:\n\n```\w+ kbo_pipeline/.*?^```$", re.MULTILINE | re.DOTALL)
"""A file that CONTRIBUTING.md tells people to make, or a change; a test of its own tries it."""

CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:kbo|make) [^`\n]+)`")
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def named(documents: Sequence[Path]) -> list[str]:
    return [str(document.relative_to(REPOSITORY)) for document in documents]


@dataclass(frozen=True)
class Command:
    """A command of a console block, and what the block says that it prints."""

    heading: str
    text: str
    output: tuple[str, ...]


def commands(document: Path) -> Iterator[Command]:
    """All commands that stand behind a dollar sign, in order."""
    text = document.read_text()
    for block in CONSOLE.finditer(text):
        heading = re.findall(r"^#+ (.+)$", text[: block.start()], re.MULTILINE)[-1]
        for part in re.split(r"^\$ ", block.group(1), flags=re.MULTILINE)[1:]:
            lines = part.rstrip("\n").split("\n")
            count = next(n for n in range(1, len(lines) + 1) if is_whole("\n".join(lines[:n])))
            yield Command(heading, "\n".join(lines[:count]), tuple(lines[count:]))


def is_whole(text: str) -> bool:
    """Whether a shell would not wait for more."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith("\\")


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named(DOCUMENTS))
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_file(), link
        assert target.is_relative_to(REPOSITORY), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=named(DOCUMENTS))
def test_every_module_that_is_named_exists(document: Path) -> None:
    text = RECIPE.sub("", document.read_text())
    for name in re.findall(r"\bkbo_pipeline/[a-z_/]+\.py\b", text):
        assert (REPOSITORY / name).is_file(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=named(DOCUMENTS))
def test_every_command_exists_with_its_options(document: Path) -> None:
    text = RECIPE.sub("", CONSOLE.sub("", document.read_text()))
    for written in [*(c.text for c in commands(document)), *INLINE.findall(text)]:
        check_command(written)


def check_command(written: str) -> None:
    """Checks that a program, its command and its options are there."""
    words = shlex.split(written.replace("[", " ").replace("]", " "), comments=True)
    program, *rest = (word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word))
    name = Path(program).name
    if name == "make":
        assert rest and rest[0] in TARGETS, written
    elif name == "kbo":
        if rest[0].startswith("-") or rest[0] in ("...", "X"):
            return
        command = main.commands[rest[0]]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert {w for w in rest[1:] if w.startswith("--")} <= known, written
    else:
        assert name in PROGRAMS, written


def test_the_checks_of_commands_see_what_is_wrong() -> None:
    for wrong in ("kbo shwo 1", "kbo show --alll", "make tset", "curll -s"):
        with pytest.raises((AssertionError, KeyError)):
            check_command(wrong)
    assert issubclass(type(main), click.Group)
    assert len(list(commands(README))) >= 12


RUN_ELSEWHERE = {
    "make demo": ".ci/run",
    "make test": ".ci/run",
    "make start": "test_portal_end_to_end.py, without the portal's real address",
    "git pull": "nothing of ours",
    "psql": "test_queue.py, which reads the view as kbo_reader",
    "cat .env": "shows what a person has written",
    "chmod 600 .env": "a file that a person has written",
    "kbo status": "test_portal_sensor.py; here a portal would be needed",
    "kbo doctor": "test_doctor.py; what it finds depends on the machine",
    "echo $?": "speaks of kbo doctor",
}


def is_run_here(command: Command) -> bool:
    written = command.text.removeprefix(".venv/bin/")
    for other in RUN_ELSEWHERE:
        if written.startswith(other):
            # In the practice, it needs no portal.
            return other == "kbo status" and command.heading.startswith("Practise")
    return True


@dataclass
class Place:
    """A directory that looks like a clone in which `make setup` was called."""

    directory: Path
    pipeline: Pipeline

    @classmethod
    def make(cls, directory: Path) -> "Place":
        directory.mkdir()
        (directory / ".venv").symlink_to(sys.prefix)
        (directory / "Makefile").symlink_to(REPOSITORY / "Makefile")
        for name in ("pyproject.toml", "setup.cfg", "constraints.txt"):
            (directory / name).touch()  # older than what is installed: make installs nothing
            os.utime(directory / name, (0, 0))
        pipeline = Pipeline(directory / "data")
        pipeline.prepare()
        return cls(directory, pipeline)

    def run(self, written: Sequence[Command]) -> list[tuple[str, str]]:
        """Runs commands in one shell, one after the other; what each of them printed."""
        done = subprocess.run(
            ["bash"],
            input="\n".join(f"{c.text} 2>&1; echo '{self._MARK}'" for c in written),
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        printed = done.stdout.split(f"{self._MARK}\n")[:-1]
        assert done.stderr == ""
        return [(c.text, out) for c, out in zip(written, printed, strict=True)]

    @property
    def environment(self) -> dict[str, str]:
        binaries = f"{self.directory / '.venv' / 'bin'}:{self.pipeline.environment['PATH']}"
        inherited = self.pipeline.environment
        others = {k: v for k, v in inherited.items() if not k.startswith("KBO_")}
        ours = {"PATH": binaries, "PYTHONPATH": str(REPOSITORY), "KBO_DATA_DIR": "data"}
        return others | ours

    _MARK = "--- that was it ---"


def assert_printed(command: str, output: str, expected: Sequence[str]) -> None:
    """Compares what was printed with a document: numbers of seconds and `...` stand for any."""
    pattern = "\n".join(expected)
    for special in "[?*":
        pattern = pattern.replace(special, f"[{special}]")
    pattern = re.sub(r"\d+\.\d s\b", "* s", pattern.replace("...", "*"))
    assert fnmatchcase(output.rstrip("\n"), pattern), f"$ {command}\n{output}"


@pytest.mark.long
def test_the_commands_of_the_readme_are_run(tmp_path: Path) -> None:
    place = Place.make(tmp_path / "clone")
    core = Core(tmp_path / "core", batch_rows=10_000)  # what `make demo` leaves for readers
    for file in write_sample(tmp_path, Sample(), updates=3)[:-1]:
        core.import_zip(file)
    (place.directory / "data" / "demo").mkdir(parents=True)
    shutil.copy(core.database, place.directory / "data" / "demo" / "kbo.duckdb")
    written = [command for command in commands(README) if is_run_here(command)]
    assert len(written) >= 9
    ran = dict(place.run(written))
    for command in written:
        assert "Traceback" not in ran[command.text], ran[command.text]
        if command.output:
            assert_printed(command.text, ran[command.text], command.output)
    assert "Uyttenhoek" in ran[".venv/bin/kbo show 0230.673.126"]
    assert "stopped" in ran[".venv/bin/kbo changes 0143-update"]
    assert "error" in ran[".venv/bin/kbo status"]


FULL = "KboOpenData_0140_2025_10_05_Full.zip"
UPDATE = "KboOpenData_0141_2025_10_06_Update.zip"
NUMBERS = [f"0{400 + n // 1000}.{n % 1000:03d}.000" for n in range(1000)]


def two_extracts(place: Place) -> None:
    """A Full of 2,000 enterprises and its Update."""
    assert [f.name for f in write_sample(place.directory, Sample(), updates=1)[:2]] == [
        FULL,
        UPDATE,
    ]


def imported(place: Place) -> None:
    """Both of them imported."""
    two_extracts(place)
    place.pipeline.kbo("import", place.directory / FULL, place.directory / UPDATE)


def update_with_faults(place: Place) -> None:
    """A Full, imported, and an Update with a file without a column, and a field too many."""
    full = write_extract(place.directory, ExtractKey(140, "full"), rows_for(NUMBERS[:9], "one"))
    place.pipeline.kbo("import", full)
    members = {
        "establishment_insert.csv": '"EstablishmentNumber","EnterpriseNumber"\n',
        "contact_insert.csv": csv_text(CONTACT.columns, [(NUMBERS[0], "ENT", "TEL", "02")])
        + '"0417.497.106","ENT","EMAIL","info@voorbeeld.example",\n',
    }
    write_extract(place.directory, ExtractKey(141, "update"), {}, members=members)


def update_with_faulty_rows(place: Place) -> None:
    """A Full, imported, and an Update that is refused because of twelve impossible dates."""
    full = write_extract(place.directory, ExtractKey(140, "full"), rows_for(NUMBERS[:9], "one"))
    place.pipeline.kbo("import", full)
    lines = [f'"2.000.000.{n:03d}",31-02-2020,"0417.497.106"\n' for n in range(12)]
    members = {"establishment_insert.csv": csv_text(ESTABLISHMENT.columns, []) + "".join(lines)}
    update = write_extract(place.directory, ExtractKey(141, "update"), {}, members=members)
    assert place.pipeline.kbo("import", update, check=False).returncode == 1


def update_that_loses(place: Place) -> None:
    """A Full of 1,000 enterprises, imported, and an Update that takes contacts of 29 away."""
    full = write_extract(place.directory, ExtractKey(140, "full"), rows_for(NUMBERS, "one"))
    place.pipeline.kbo("import", full)
    lost = keys_for(NUMBERS[:29])["contact"]
    write_extract(place.directory, ExtractKey(141, "update"), {}, {"contact": lost})


SECTIONS: dict[str, Callable[[Place], None]] = {
    "Import by hand": two_extracts,
    "When an extract is refused": update_with_faults,
    "Rows set aside": update_with_faulty_rows,
    "When a check stops an extract": update_that_loses,
    "Undo an extract": imported,
}


@pytest.mark.long
@pytest.mark.parametrize("heading", SECTIONS)
def test_the_commands_of_operating_are_run(tmp_path: Path, heading: str) -> None:
    place = Place.make(tmp_path / "clone")
    SECTIONS[heading](place)
    written = [c for c in commands(OPERATING) if c.heading == heading]
    assert written
    for command, (_, output) in zip(written, place.run(written), strict=True):
        assert_printed(
            command.text, output.replace(str(place.directory), "/srv/kbo"), command.output
        )


def test_every_command_of_operating_is_run_or_said_to_be_run_elsewhere() -> None:
    for command in commands(OPERATING):
        assert command.heading in SECTIONS or not is_run_here(command), command


def test_each_row_of_what_comes_from_outside_names_tests_that_there_are() -> None:
    rows = [
        line.strip("| ").split("|")
        for line in (REPOSITORY / "docs" / "outside.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| what comes ")
    ]
    assert len(rows) > 50
    for row in rows:
        assert len(row) == 4, row
        named = re.findall(r"`(test_[a-z_]+\.py)`", row[-1])
        assert named, row
        for name in named:
            assert len(list((REPOSITORY / "kbo_pipeline_tests").glob(f"*/{name}"))) == 1, row
