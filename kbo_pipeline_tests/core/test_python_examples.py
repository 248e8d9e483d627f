"""The examples of docs/python.md, docs/http.md and of the HTTP API, on the register of the demo."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import kbo_pipeline
from kbo_pipeline.read.index import build_index
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.web import Web, serving

DOCUMENT = (REPOSITORY / "docs" / "python.md").read_text()
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """A register as the demo makes it: a Full and three Updates."""
    directory = tmp_path_factory.mktemp("demo")
    core = Core(directory / "core", batch_rows=10_000)
    for file in write_sample(directory, Sample(), updates=3)[:-1]:
        core.import_zip(file)
    return core


@pytest.fixture(scope="module")
def web(core: Core) -> Iterator[Web]:
    build_index(core.all_settings())
    with serving(core) as web:
        yield web


def test_each_example_prints_what_the_document_says(
    core: Core, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KBO_DATABASE", str(core.database))
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


def test_each_example_of_the_description_is_answered(web: Web) -> None:
    description = web.get("v1/openapi.json").json()
    asked = set()
    operations = [
        (path, *one) for path, methods in description["paths"].items() for one in methods.items()
    ]
    for path, method, operation in operations:
        if method == "post":
            ((kind, content),) = operation["requestBody"]["content"].items()
            if kind == "application/json":
                (example,) = content["schema"]["examples"]
                assert web.post(path.removeprefix("/kbo/"), example).json()["data"][0]["candidates"]
            else:
                (example,) = content["schema"]["properties"]["queries"]["examples"]
                form = {"queries": example}
                answer = web.session.post(f"{web.address}{path}", data=form, timeout=60)
                assert answer.json()["q0"]["result"]
            asked.add((path, method))
            continue
        parameters = operation.get("parameters", [])
        examples = [
            [(parameter, example) for example in parameter["schema"].get("examples", [None])]
            for parameter in parameters
        ]
        for values in product(*examples):
            address = path.removeprefix("/kbo/")
            query = []
            for parameter, example in values:
                if parameter["in"] == "path":
                    assert example is not None
                    address = address.replace(f"{{{parameter['name']}}}", example)
                elif example is not None:
                    query.append(f"{parameter['name']}={example}")
            answer = web.get(f"{address}?{'&'.join(query)}")
            assert answer.status_code == 200, address
            assert answer.json().get("data", True), address
            asked.add((path, method))
    assert len(asked) == len(operations)


def part_of(expected: Any, found: Any, place: str = "answer") -> list[str]:
    """Where an answer differs from what a document shows of it."""
    if expected == "...":
        return [] if isinstance(found, str) and found else [f"{place}: {found!r} is no text"]
    if isinstance(expected, dict) and isinstance(found, dict):
        missing = [f"{place}.{key}: missing" for key in expected.keys() - found.keys()]
        common = expected.keys() & found.keys()
        return missing + [
            line for key in common for line in part_of(expected[key], found[key], f"{place}.{key}")
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) <= len(found):
        return [
            line
            for number, (one, other) in enumerate(zip(expected, found, strict=False))
            for line in part_of(one, other, f"{place}[{number}]")
        ]
    return [] if expected == found else [f"{place}: {found!r} instead of {expected!r}"]


HTTP_EXAMPLE = re.compile(
    r"```bash\ncurl \"?http://127.0.0.1:3001/kbo/(\S+?)\"?"
    r"(?: -H 'Content-Type: application/json' \\\n  -d '(.*?)')?"
    r"(?: --data-urlencode \\\n  'queries=(.*?)')?\n```\n\n```json\n(.*?)```",
    re.DOTALL,
)


def test_each_answer_of_the_document_is_given(web: Web) -> None:
    document = (REPOSITORY / "docs" / "http.md").read_text(encoding="utf-8")
    examples = HTTP_EXAMPLE.findall(document)
    assert len(examples) == document.count("```bash") == document.count("```json") >= 6
    for path, body, queries, shown in examples:
        if queries:
            address = f"{web.address}/kbo/{path}"
            answer = web.session.post(address, data={"queries": queries}, timeout=60)
        else:
            answer = web.post(path, json.loads(body)) if body else web.get(path)
        assert part_of(json.loads(shown), answer.json()) == [], path
    assert part_of({"a": [{"b": 1}], "c": "..."}, {"a": [{"b": 2}], "d": 0}) == [
        "answer.c: missing",
        "answer.a[0].b: 2 instead of 1",
    ]
