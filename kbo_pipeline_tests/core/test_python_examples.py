"""The examples of docs/python.md, run one after the other on the register of the demo."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import kbo_pipeline
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core

DOCUMENT = (REPOSITORY / "docs" / "python.md").read_text()
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A register as the demo makes it: a Full and three Updates."""
    directory = tmp_path_factory.mktemp("demo")
    core = Core(directory / "core", batch_rows=10_000)
    for file in write_sample(directory, Sample(), updates=3)[:-1]:
        core.import_zip(file)
    return core.database


def test_each_example_prints_what_the_document_says(
    demo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KBO_DATABASE", str(demo))
    examples = EXAMPLE.findall(DOCUMENT)
    assert len(examples) == DOCUMENT.count("```python") >= 7
    names: dict[str, Any] = {}
    for code, expected in examples:
        said = io.StringIO()
        with redirect_stdout(said):
            exec(code, names)
        assert said.getvalue() == expected, code


def test_the_public_names_are_there_and_no_others() -> None:
    for name in kbo_pipeline.__all__:
        assert getattr(kbo_pipeline, name).__name__ == name
        assert name in dir(kbo_pipeline)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        getattr(kbo_pipeline, "no_such" + "_name")
