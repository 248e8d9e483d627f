"""What we use of Dagster's insides is there as it was, named when it is not, and listed."""

import ast
import importlib
import inspect
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import kbo_pipeline
from kbo_pipeline.operate import insides
from kbo_pipeline_tests.support.insides import INSIDES, Inside

PACKAGE = Path(kbo_pipeline.__file__).parent
PUBLIC = {"dagster", "dagster_duckdb", "dagster_postgres", "dagster_webserver"}
"""What may be imported from, where the name itself is no private one."""


def found_at(path: str) -> Any:
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = inspect.getattr_static(found, name)
        found = getattr(found, "__func__", found)
    return found


def has(found: Any, name: str) -> bool:
    """A column, an attribute, or one that the class gives its instances."""
    columns = getattr(found, "c", None)
    if columns is not None:
        return name in columns
    if hasattr(found, name) or name in getattr(found, "__annotations__", {}):
        return True
    classes = inspect.getmro(found) if inspect.isclass(found) else ()
    return any(f"self.{name} = " in inspect.getsource(one) for one in classes if one is not object)


def differences(part: Inside) -> list[str]:
    """What is not as the table says, each with the name of the part."""
    lines = []
    for path, expected in part.needs.items():
        try:
            found = found_at(path)
        except (ImportError, AttributeError) as error:
            lines.append(f"{part.name}: {path}: {error}")
            continue
        if expected.startswith("= "):
            now = f"= {found!r}"
        elif expected.startswith("has "):
            names = expected.removeprefix("has ").split()
            now = " ".join(["has", *(name for name in names if has(found, name))])
        else:
            names = [name for name in inspect.signature(found).parameters]
            now = " ".join(name for name in names if name not in ("self", "cls", "_cls"))
        if now != expected:
            lines.append(f"{part.name}: {path}: {now}, was {expected}")
    return lines


def test_the_table_is_of_the_installed_versions() -> None:
    installed = {name: version(name) for name in insides.MADE_FOR}
    assert installed == insides.MADE_FOR


@pytest.mark.parametrize("part", INSIDES, ids=lambda part: part.name)
def test_a_part_is_as_it_was(part: Inside) -> None:
    assert part.needs
    assert differences(part) == []


@pytest.mark.parametrize(
    ("path", "name", "changed", "line"),
    [
        ("dagster._daemon.sensor", "MIN_INTERVAL_LOOP_TIME", 7, "tick of the daemon: .* = 7, was"),
        ("dagster._core.execution.retries", "auto_reexecution_should_retry_run", None, "one retry"),
        (
            "dagster_postgres:PostgresEventLogStorage",
            "store_event_batch",
            lambda self, events, more: None,
            "events at once: .* events more, was events",
        ),
        (
            "dagster._core.storage.runs.schema",
            "RunsTable",
            object,
            "runs by extract: .* was has",
        ),
    ],
)
def test_a_change_is_named(
    path: str, name: str, changed: Any, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, inner = path.partition(":")
    where = importlib.import_module(module)
    where = getattr(where, inner) if inner else where
    if changed is None:
        monkeypatch.delattr(where, name)
    else:
        monkeypatch.setattr(where, name, changed)
    named = [line for part in INSIDES for line in differences(part)]
    assert any(re.match(line, one) for one in named), named


def private_imports() -> set[tuple[str, str]]:
    """Modules of ours, each with what it imports of Dagster's insides while it runs."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        tree = ast.parse(file.read_text())
        for block in ast.walk(tree):  # what is for types alone
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
                block.body = []
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                if node.module.split(".")[0].startswith("dagster") and node.module not in PUBLIC:
                    found |= {(name, f"{node.module}:{alias.name}") for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {
                    (name, alias.name) for alias in node.names if alias.name.startswith("dagster.")
                }
    return found


def test_each_private_import_is_in_the_table() -> None:
    listed = {
        (f"operate.{module}", path.replace(":", ".") + ".")
        for part in INSIDES
        for module in part.modules
        for path in part.needs
    }
    missing = {
        (module, path)
        for module, path in private_imports()
        if not any(
            module == where and known.startswith(path.replace(":", ".") + ".")
            for where, known in listed
        )
    }
    assert missing == set()
    assert len(private_imports()) > 10


def test_each_part_says_what_happens_without_it() -> None:
    assert len({part.name for part in INSIDES}) == len(INSIDES)
    for part in INSIDES:
        assert part.without.startswith("Stays: ") == part.stays


def test_another_version_counts_as_untested(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = insides.are_tested.__wrapped__
    monkeypatch.delenv(insides.STOCK, raising=False)
    assert asked()
    monkeypatch.setenv(insides.STOCK, "1")
    assert not asked()
    monkeypatch.delenv(insides.STOCK)
    monkeypatch.setitem(insides.MADE_FOR, "dagster", "1.13.26")
    assert not asked()
