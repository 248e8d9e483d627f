"""The Reconciliation API as OpenRefine speaks it: the manifest, then batches as forms."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from kbo_pipeline.read.index import build_index
from kbo_pipeline.read.web.reconcile import BATCH
from kbo_pipeline_tests.support.bakery import BAKER, PERSON, SHOP, make_bakery
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.web import Web, problem_of, serving

REFINE = "http://127.0.0.1:3333"
AS_OPENREFINE_ASKS = {"Origin": REFINE, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}
ZIPCODE = {"pid": "zipcode", "p": "zipcode", "v": "9007"}


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory) -> Core:
    bakery = make_bakery(tmp_path_factory.mktemp("bakery"))
    build_index(bakery.all_settings())
    return bakery


@pytest.fixture(scope="module")
def web(bakery: Core) -> Iterator[Web]:
    with serving(bakery, KBO_API_ORIGINS=REFINE) as web:
        yield web


def ask(web: Web, queries: Any, **fields: str) -> requests.Response:
    """Asks by a form, as OpenRefine's server does."""
    text = queries if isinstance(queries, str) else json.dumps(queries)
    form = {"queries": text} | fields
    return web.session.post(f"{web.address}/kbo/v1/reconcile", data=form, timeout=60)


def check_types(types: Any) -> None:
    assert types == [{"id": "enterprise", "name": "Enterprise"}]


def candidates(answer: requests.Response) -> dict[str, list[dict[str, Any]]]:
    """What is found by query, after it is held against the protocol's schema."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    batch = answer.json()
    assert isinstance(batch, dict)
    for found in batch.values():
        assert set(found) == {"result"}
        for one in found["result"]:
            assert set(one) == {"id", "name", "description", "type", "score", "match"}
            assert all(isinstance(one[name], str) for name in ("id", "name", "description"))
            assert isinstance(one["match"], bool) and 0 <= one["score"] <= 100
            check_types(one["type"])
    return {name: found["result"] for name, found in batch.items()}


def test_a_session_of_openrefine(web: Web) -> None:
    # A page of OpenRefine adds the service.
    answer = web.get("v1/reconcile", headers=AS_OPENREFINE_ASKS)
    assert answer.headers["access-control-allow-origin"] == REFINE
    manifest = answer.json()
    assert "0.2" in manifest["versions"] and manifest["batchSize"] == BATCH
    assert "Source: KBO Open Data, FPS Economy; data of 2025-05-23" in manifest["name"]
    for name in ("identifierSpace", "schemaSpace"):
        assert re.match(r"https?://\S+$", manifest[name])
    check_types(manifest["defaultTypes"])
    assert set(manifest["suggest"]) == {"entity", "property", "type"}

    # It asks for properties and entities while somebody types.
    def suggested(of: str, prefix: str) -> list[dict[str, Any]]:
        service = manifest["suggest"][of]
        address = service["service_url"] + service["service_path"]
        parameters = {"prefix": prefix, "spell": "always", "exact": "false", "type_strict": "any"}
        headers = AS_OPENREFINE_ASKS
        answer = requests.get(address, params=parameters, headers=headers, timeout=60)
        assert answer.status_code == 200 and set(answer.json()) == {"result"}
        result: list[dict[str, Any]] = answer.json()["result"]
        assert all({"id", "name"} <= set(one) for one in result)
        return result

    assert [one["id"] for one in suggested("property", "post")] == ["zipcode"]
    assert [one["id"] for one in suggested("type", "")] == ["enterprise"]
    assert [one["id"] for one in suggested("entity", "celes")] == [PERSON, BAKER]
    assert suggested("entity", "  ") == suggested("entity", "zzzz") == []

    # Its server sends batches; a person follows the link of a candidate.
    found = candidates(
        ask(
            web,
            {
                "q0": {"query": "Boulangerie Celeste", "type": "enterprise", "limit": 3,
                       "properties": [ZIPCODE], "type_strict": "should"},
                "q1": {"query": "nobody at all"},
                "q2": {"query": "", "properties": [{"pid": "number", "v": {"id": SHOP}}]},
                "ü": {"query": "gouden korts"},
            },
        )
    )  # fmt: skip
    assert list(found) == ["q0", "q1", "q2", "ü"]
    assert (found["q0"][0]["id"], found["q0"][0]["match"], found["q0"][0]["score"]) == (
        *(BAKER, True, 99.0),  # of another language
    )
    assert "9007 Leieland" in found["q0"][0]["description"]
    assert found["q1"] == []
    assert [(one["id"], one["match"]) for one in found["q2"]] == [(BAKER, True)]
    assert found["ü"][0]["id"] == BAKER
    assert "found as De Gouden Korst" in found["ü"][0]["description"]
    page = requests.get(manifest["view"]["url"].replace("{{id}}", BAKER), timeout=60)
    assert page.status_code == 200 and "Boulangerie Céleste" in page.text


def test_a_batch_by_get_is_the_same(web: Web) -> None:
    batch = {"a": {"query": "celeste"}, "b": {"query": "celeste", "limit": 1}}
    found = web.get("v1/reconcile?" + urlencode({"queries": json.dumps(batch)}))
    assert candidates(found) == candidates(ask(web, batch))
    assert [len(result) for result in candidates(found).values()] == [2, 1]


@pytest.mark.parametrize(
    ("value", "is_at_place"),
    [
        ("9007", True),
        (9007, True),
        (9007.0, True),
        (["", {"id": "9007", "name": "Leieland"}], True),
        ([], True),
        ("1000", False),
        (True, False),
    ],
)
def test_values_of_properties_come_in_any_shape(web: Web, value: Any, is_at_place: bool) -> None:
    query = {"query": "Boulangerie Celeste", "properties": [{"pid": "zipcode", "v": value}]}
    ((best, *_),) = candidates(ask(web, {"q": query})).values()
    assert (best["id"], best["match"]) == (BAKER, is_at_place)


@pytest.mark.parametrize(
    ("queries", "status", "line"),
    [
        ("", 400, "expected a form"),
        ("{", 400, "queries: Invalid JSON"),
        ("[" * 100_000, 400, "queries: "),
        ([], 400, "queries: "),
        ({"q": "x"}, 400, "queries.q: "),
        ({"q": {}}, 400, "a query without query and properties"),
        ({"q": {"query": "x", "limit": 0}}, 400, "queries.q.limit: "),
        ({"q": {"query": "x", "quary": "y"}}, 400, "queries.q.quary: "),
        ({"q": {"query": "x", "properties": [{"pid": "vat", "v": "1"}]}}, 400, "no property 'vat'"),
        ('{"q": {"query": "\\ud800"}}', 400, "queries: "),
        ({str(n): {"query": "x"} for n in range(BATCH + 1)}, 413, "101 queries; 100 are"),
        ({"q": {"query": "x" * 2_000_000}}, 413, "a body of"),
    ],
)
def test_what_is_no_batch_is_one_line(web: Web, queries: Any, status: int, line: str) -> None:
    found = problem_of(ask(web, queries))
    assert found[0] == status
    assert found[1].startswith(line)


def test_hostile_queries_are_names(web: Web) -> None:
    texts = ("'; DROP TABLE enterprise; --", "<script>", "\0", "../../etc/passwd", "x" * 500_000)
    found = candidates(ask(web, {text[:9]: {"query": text} for text in texts}))
    assert len(found) == len(texts)


def test_other_pages_other_bodies_and_no_index_are_refused(
    web: Web, bakery: Core, tmp_path: Path
) -> None:
    batch = {"q": {"query": "celeste"}}
    evil = {"Origin": "http://evil.example"}
    assert web.problem("v1/reconcile", headers=evil)[0] == 403
    assert problem_of(web.post("v1/reconcile", batch))[0] == 400  # JSON, no form
    copied = shutil.copytree(bakery.directory, tmp_path / "copy")
    unbuilt = replace(bakery, directory=copied)
    shutil.rmtree(unbuilt.all_settings().search_dir)
    with serving(unbuilt, KBO_API_KEYS="0" * 64) as other:
        assert problem_of(ask(other, batch))[0] == 401
    with serving(unbuilt) as other:
        assert problem_of(ask(other, batch))[0] == 503
        assert other.get("v1/reconcile").json()["versions"] == ["0.2"]
