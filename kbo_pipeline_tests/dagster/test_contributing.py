"""CONTRIBUTING.md: its picture of the folders, where it says things are, and its recipes."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kbo_pipeline

PACKAGE = Path(kbo_pipeline.__file__).parent
REPOSITORY = PACKAGE.parent
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```(\w+) (kbo_pipeline/\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
"""Language, file and text of each block of the recipes."""

LOOK = """
import dagster as dg
from kbo_pipeline.definitions import defs
from kbo_pipeline.defs.assets.legal_forms import legal_forms

checks = {check.name for check in defs.resolve_asset_graph().asset_check_keys}
assert "has_code" in checks, checks
assert defs.get_sensor_def("count_when_published").job_name
done = dg.materialize([legal_forms], resources=defs.resources)
(event,) = done.get_asset_materialization_events()
print(sum(entry.value for entry in event.materialization.metadata.values()))
"""


def test_every_folder_is_listed_with_the_first_sentence_of_its_docstring() -> None:
    folders = {file.parent.name: file for file in PACKAGE.glob("*/__init__.py")}
    listed = dict(re.findall(r"^\| `(\w+)/` \| (.*) \|$", TEXT, re.MULTILINE))
    for name, file in folders.items():
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        assert listed.pop(name) == docstring.split("\n")[0]
    assert listed == {}


def test_every_file_and_name_that_it_names_is_there() -> None:
    made = {file for language, file, _ in BLOCKS if language == "python"}
    named = set(re.findall(r"\bkbo_pipeline\w*/[\w/]+\.(?:py|md)\b", TEXT)) - made
    assert len(named) > 10
    assert [file for file in sorted(named) if not (REPOSITORY / file).exists()] == []
    names = re.findall(r"`(kbo_pipeline/[\w/]+\.py)`, `(\w+)`", TEXT)
    assert len(names) > 5
    for file, name in names:
        text = (REPOSITORY / file).read_text()
        assert re.search(rf"^ *(def {name}\(|class {name}\b|{name}\b.* = )", text, re.MULTILINE), (
            name
        )


def follow(directory: Path) -> None:
    """Does to a copy of the package what the recipes say."""
    shutil.copytree(PACKAGE, directory / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for language, name, block in BLOCKS:
        file = directory / name
        if language == "python":
            assert not file.exists(), name
            file.write_text(block)
            continue
        text = file.read_text()
        for hunk in re.split(r"^ ?\n", block, flags=re.MULTILINE):
            lines = [(line[:1], line[1:]) for line in hunk.splitlines()]
            before = "".join(f"{line}\n" for sign, line in lines if sign in " -")
            after = "".join(f"{line}\n" for sign, line in lines if sign in " +")
            assert text.count(before) == 1, f"{name}: {before!r}"
            text = text.replace(before, after)
        file.write_text(text)


@pytest.mark.long
def test_the_recipes_lead_to_an_asset_a_check_a_command_a_column_and_a_sensor(
    tmp_path: Path,
) -> None:
    follow(tmp_path)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("KBO_")},
        "PYTHONPATH": str(tmp_path),
        "KBO_DATA_DIR": str(tmp_path / "data"),
        "DAGSTER_HOME": str(tmp_path / "data" / "dagster_home"),
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kbo = ("-m", "kbo_pipeline.cli")
    run(*kbo, "sample", "zips", "--enterprises", "50")
    run(*kbo, "import", *sorted(str(file) for file in (tmp_path / "zips").glob("*_Full.zip")))
    counted = int(run(*kbo, "count"))
    assert counted > 0
    assert int(run("-c", LOOK).splitlines()[-1]) == counted
    column = "import kbo_pipeline as k; print(k.read_register().state('enterprise').columns)"
    assert "tax_region" in run("-c", column)
