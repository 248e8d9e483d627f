"""What imports what, what is documented: rules on the package itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

import kbo_pipeline
from kbo_pipeline.cli import main
from kbo_pipeline.core.settings import Settings, variable_of

PACKAGE = Path(kbo_pipeline.__file__).parent
README = (PACKAGE.parent / "README.md").read_text()
OPERATING = (PACKAGE.parent / "docs" / "operating.md").read_text()
MODULES = sorted(
    ".".join((PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    )
    for file in PACKAGE.rglob("*.py")
)
FLOORS = ("core", "sample", "fetch", "stage", "apply", "read", "publish")
CORE = [name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in FLOORS]


def imported(code: str, forbidden: set[str]) -> set[str]:
    """Which of the forbidden packages a fresh interpreter has imported after this code."""
    script = f"{code}\nimport sys\nprint(*({forbidden!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_core_imports_neither_dagster_nor_pandas() -> None:
    assert {"kbo_pipeline.core.tables", "kbo_pipeline.apply.register", "kbo_pipeline.sample"} <= {
        *CORE
    }
    code = "\n".join(f"import {name}" for name in CORE)
    assert imported(code, {"dagster", "dagster_postgres", "dagster_duckdb", "pandas"}) == set()


def test_the_lowest_modules_import_nothing_but_python() -> None:
    code = "import kbo_pipeline.core.tables, kbo_pipeline.core.errors, kbo_pipeline.core.settings"
    assert imported(code, {"duckdb", "isal", "click", "dotenv", "psycopg2", "requests"}) == set()


def test_reading_the_register_waits_for_nothing_that_only_writing_needs() -> None:
    assert (
        imported("import kbo_pipeline", {"duckdb", "click", "rich", "kbo_pipeline.core.errors"})
        == set()
    )
    code = "import kbo_pipeline, kbo_pipeline.commands.page\nkbo_pipeline.read_register"
    assert imported(code, {"dagster", "numpy", "pandas", "pyarrow", "requests"}) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["import", "--help"], ["--version"]])
def test_help_waits_for_neither_dagster_nor_duckdb(arguments: list[str]) -> None:
    code = f"from kbo_pipeline.cli import main\nmain({arguments!r}, standalone_mode=False)"
    assert imported(code, {"dagster", "duckdb", "pandas", "rich", "psycopg2"}) == set()


def public(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    """The public classes, functions and methods of a module or class, with their full names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name.startswith("_") or _is_overload(child):
                continue
            yield f"{name}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{name}.{child.name}")


def _is_overload(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module: str) -> None:
    path = PACKAGE.parent / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text())
    names = [(module, tree), *public(tree, module)]
    bare = [
        name
        for name, node in names
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not (ast.get_docstring(node) or "").strip()
    ]
    assert bare == []


def variables(document: str) -> list[str]:
    """The settings in the first column of a document's tables."""
    rows = [line.split("|")[1] for line in document.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`((?:KBO|DAGSTER)_\w+)`", row)]


def test_operating_lists_exactly_the_variables_that_are_known_and_the_readme_a_few() -> None:
    known = {variable_of(setting.name) for setting in fields(Settings)} - {"KBO_S3"}
    assert len(known) >= 11
    assert sorted(variables(OPERATING)) == sorted(known)
    assert len(variables(README)) == 6
    assert {*variables(README)} < known


def test_the_readme_lists_exactly_the_commands_that_there_are() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `kbo ")]
    listed = [row.split("`")[1].split()[1] for row in rows]
    assert sorted(listed) == sorted(main.commands)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_and_option_has_help(name: str) -> None:
    command = main.commands[name]
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def kinds_asked(source: str) -> list[str]:
    """The questions of a module what kind of place something is."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "isinstance"
        and {"Path", "DuckDBFile", "Lake", "MotherDuck"}
        & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
    ]


def test_nothing_asks_what_kind_a_place_is() -> None:
    assert kinds_asked("a = isinstance(x, Path)\nb = isinstance(x, str | Lake)") == [
        "isinstance(x, Path)",
        "isinstance(x, str | Lake)",
    ]
    found = {file: kinds_asked(file.read_text()) for file in PACKAGE.rglob("*.py")}
    assert {file: asked for file, asked in found.items() if asked} == {}


def test_no_statement_has_a_window() -> None:
    """In DuckDB 1.5.5, one over few rows ends the database now and then (duckdb issue 25713)."""
    words = re.compile(r"\bOVER \(|\bQUALIFY\b")
    found = [str(file) for file in PACKAGE.rglob("*.py") if words.search(file.read_text())]
    assert found == []
