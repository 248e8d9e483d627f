"""Rules on the tests themselves: what they import, and that each of them checks something."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kbo_pipeline_tests

ROOT = Path(kbo_pipeline_tests.__file__).parent
TREES = {file.relative_to(ROOT): ast.parse(file.read_text()) for file in ROOT.rglob("*.py")}
TESTS = {file: tree for file, tree in TREES.items() if file.name.startswith("test_")}
LAYERS = {"unit", "core", "dagster", "stack", "browser"}


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names of what is imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_test_lies_in_a_layer_and_no_two_have_one_name() -> None:
    assert {file.parts[0] for file in TESTS} == LAYERS
    assert len({file.name for file in TESTS}) == len(TESTS)


def test_no_test_is_imported() -> None:
    for file, tree in TREES.items():
        assert not [name for name in imports(tree) if ".test_" in name], file


@pytest.mark.parametrize("layer", ["unit", "core"])
def test_the_lower_layers_know_no_dagster(layer: str) -> None:
    for file, tree in TESTS.items():
        if file.parts[0] == layer:
            assert not [name for name in imports(tree) if name.startswith("dagster")], file


def checks(function: ast.AST) -> bool:
    """Whether a function asserts something itself."""
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Attribute) and node.attr in ("raises", "warns"))
        for node in ast.walk(function)
    )


def named(function: ast.AST) -> set[str]:
    """The names of what a function calls or hands on."""
    return {node.id for node in ast.walk(function) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)
    }


def functions(tree: ast.AST) -> dict[str, bool]:
    """Which functions a module has, and whether they check something."""
    return {n.name: checks(n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def test_every_test_checks_something() -> None:
    """Itself, or through a helper that does."""
    shared = {
        name: checking
        for file, tree in TREES.items()
        if file not in TESTS
        for name, checking in functions(tree).items()
    }
    for file, tree in TESTS.items():
        checking = {name for name, does in (shared | functions(tree)).items() if does}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert checks(node) or named(node) & checking, (file, node.name)
