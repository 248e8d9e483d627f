"""Feeds faulty input to `kbo` and looks whether anything has changed."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import duckdb
from click.testing import CliRunner
from dagster import DagsterInstance, RunsFilter
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from kbo_pipeline.cli import main
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.read.published import content_hash
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.zips import write_extract
from kbo_pipeline_tests.tools.bad_input.cases import ROWS, Case
from kbo_pipeline_tests.tools.bad_input.commands import command_cases
from kbo_pipeline_tests.tools.bad_input.extracts import extract_cases
from kbo_pipeline_tests.tools.bad_input.zips import zip_cases

GROUPS = {
    "The ZIP": zip_cases,
    "The extract": extract_cases,
    "Commands and settings": command_cases,
}
_WATCHED = ("downloads", "staging", "work", "inbox", "exports", "kbo.duckdb")
"""What must stay as it is; records of the refusal and `rejected/` may come.

Records are Dagster's, and `work/progress`: how far the extract came.
"""
_PROGRESS = Path("work", "progress")

_ZLIBS = re.compile(r"\b[0-9a-f]{12}\b|(?<=bytes out of )[0-9,]+")
"""Parts of messages that depend on how a zlib compresses."""


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        error: what was said, with paths as `DIR` and `KBO_DATA_DIR`.
        problems: what should not have happened.
    """

    error: str
    problems: tuple[str, ...]


class Bench:
    """Two data directories: `filled` with a published Full, and one with nothing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.filled = Pipeline(directory / "filled", {"KBO_BATCH_ROWS": "1000"})
        self._empty = Pipeline(directory / "empty", {"KBO_BATCH_ROWS": "1000"})
        self._number = 0
        self._stack = ExitStack()
        self.cases = [(group, case) for group, cases in GROUPS.items() for case in cases()]

    def __enter__(self) -> "Bench":
        instance = self._stack.enter_context(self.filled.instance())
        self._instances: dict[Path, DagsterInstance] = {self.filled.directory: instance}
        full = write_extract(self._directory, ExtractKey(140, "full"), ROWS)
        self.filled.kbo("import", full)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def feed(self, case: Case) -> Result:
        """Gives a case to the command line, in this process."""
        pipeline = self._empty if case.is_first else self.filled
        self._number += 1
        directory = self._directory / str(self._number)
        directory.mkdir()
        arguments = [str(argument) for argument in case.make(directory)]
        settings = {n: v.replace("DIR", str(directory)) for n, v in case.settings.items()}
        before = dict(_contents(pipeline.directory))
        done = CliRunner().invoke(
            main,
            arguments,
            env={**_no_settings(), **pipeline.settings, **settings},
            prog_name="kbo",
        )
        problems = []
        if done.exit_code == 0:
            problems.append("taken for right")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            problems.append(f"an error that nobody expected: {done.exception!r}")
        said = done.stderr.strip()
        if len(said.splitlines()) != 1 and not said.startswith("Usage:"):
            problems.append(f"not told in one line: {said!r}")
        after = dict(_contents(pipeline.directory))
        changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
        if changed:
            problems.append(f"changed: {', '.join(changed)}")
        problems += self._runs_left(pipeline)
        said = said.splitlines()[-1] if said else ""
        said = said.replace(str(directory), "DIR").replace(str(pipeline.directory), "KBO_DATA_DIR")
        said = _ZLIBS.sub("…", said)
        shutil.rmtree(directory)
        return Result(said, tuple(problems))

    def contents(self) -> dict[str, str]:
        """What must stay as it is in the directory with a published Full."""
        return dict(_contents(self.filled.directory))

    def _runs_left(self, pipeline: Pipeline) -> Iterable[str]:
        instance = self._instances.get(pipeline.directory)
        if instance is None:
            return []
        left = instance.get_runs(RunsFilter(statuses=list(NOT_FINISHED_STATUSES)))
        return [f"run {run.run_id} is {run.status.value}" for run in left]


def page(results: Iterable[tuple[str, Case, str]]) -> str:
    """docs/bad-input.md."""
    lines = [
        "# Bad input",
        "",
        "Input that is refused, with its error message. A test feeds all of it again and compares;"
        " `python -m kbo_pipeline_tests.tools.bad_input --write docs/bad-input.md` writes this"
        " page.",
        "",
        "Each input ends with an exit code other than 0; the register, the files and the queue of"
        " runs stay unchanged. A ZIP that is refused for its contents is moved to"
        " `KBO_DATA_DIR/rejected`, with a report of its first 20 faults.",
        "",
        "Here, records and values are fed with `KBO_MAX_FAULTY_ROWS=0`. By default, a few of them"
        " stop nothing: they are [set aside](operating.md#rows-set-aside), and all other rows are"
        " imported.",
    ]
    group_before = ""
    for group, case, error in results:
        if group != group_before:
            lines += ["", f"## {group}", "", "| input | error |", "|---|---|"]
            group_before = group
        lines.append(f"| {_cell(case.name)} | {_cell(error)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return (
        text.replace("&", "&amp;").replace("|", "&#124;").replace("<", "&lt;").replace("*", "&#42;")
    )


def _contents(directory: Path) -> Iterator[tuple[str, str]]:
    for name in _WATCHED:
        top = directory / name
        for file in [top] if top.is_file() else sorted(top.rglob("*")):
            if file == directory / "work" / "register.duckdb":
                with duckdb.connect(str(file), read_only=True) as connection:
                    yield str(file.relative_to(directory)), content_hash(connection)
            elif (
                file.is_file()
                and file.suffix not in (".lock", ".wal")
                and file.parent != directory / _PROGRESS
            ):
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                yield str(file.relative_to(directory)), digest


def _no_settings() -> dict[str, str | None]:
    ours = ("KBO_", "DAGSTER_")
    return {name: None for name in os.environ if name.startswith(ours)}
