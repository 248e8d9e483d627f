"""What programs start and stop at `/kbo/v1/imports`, and what else answers below the UI's address.

The whole way, with runs that come to their end, is in `test_api_docs.py`.
"""

import json
from collections.abc import Callable, Iterator

import dagster as dg
import pytest
import requests

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.operate.runs.progress import ASSETS_OF_JOBS, RANGE_END_TAG, RANGE_START_TAG
from kbo_pipeline_tests.support.bakery import BAKER, make_bakery
from kbo_pipeline_tests.support.core import Core
from kbo_pipeline_tests.support.pipeline import Pipeline, forget_everything
from kbo_pipeline_tests.support.processes import web_server
from kbo_pipeline_tests.support.server import Server
from kbo_pipeline_tests.support.web import problem_of, samples
from kbo_pipeline_tests.support.year import Year

FULL, UPDATE = ExtractKey(140, "full"), ExtractKey(141, "update")
EVIL = "http://evil.example"
BATCHES = 4
ACTS = ("retry", "resume", "cancel", "rollback")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline with a published register, of which Dagster knows nothing yet."""
    directory = tmp_path_factory.mktemp("routes")
    made = make_bakery(directory, Core(directory / "core", batch_rows=1000))
    return Pipeline(directory / "data", {"KBO_DATABASE": str(made.database)})


@pytest.fixture(scope="module")
def stored(pipeline: Pipeline) -> Iterator[dg.DagsterInstance]:
    with pipeline.instance() as instance:
        yield instance


@pytest.fixture
def instance(stored: dg.DagsterInstance) -> dg.DagsterInstance:
    forget_everything(stored)
    return stored


@pytest.fixture(scope="module")
def server(pipeline: Pipeline, stored: dg.DagsterInstance) -> Iterator[Server]:
    with web_server(pipeline) as (server, _):
        yield server


def call(server: Server, path: str, **headers: str) -> requests.Response:
    return requests.post(f"{server.address}/kbo/v1/imports{path}", headers=headers, timeout=120)


def start(server: Server, body: object, **headers: str) -> requests.Response:
    address = f"{server.address}/kbo/v1/imports"
    return requests.post(address, json=body, headers=headers, timeout=120)


def grown(instance: dg.DagsterInstance, *, is_staged: bool = False) -> Year:
    """A published Full; and after it an Update that is staged, if it is to be."""
    year = Year(instance, BATCHES)
    year.import_extract(FULL)
    if is_staged:
        year.import_extract(UPDATE, ["stage_extract"])
    year.write()
    return year


def test_the_register_is_read_below_the_address_of_the_ui(
    server: Server, instance: dg.DagsterInstance
) -> None:
    for path in (f"v1/enterprises/{BAKER}", "v1/find?q=celeste", "v1/source"):
        answer = requests.get(f"{server.address}/kbo/{path}", timeout=60)
        assert answer.status_code == 200
        assert answer.json()["source"]["extract"] == "0142-update"
    for path in ("v1/docs", "v1/pages.css", "search?q=celeste", f"enterprises/{BAKER}"):
        assert requests.get(f"{server.address}/kbo/{path}", timeout=60).status_code == 200
    assert "v1/imports" in requests.get(f"{server.address}/kbo/v1/openapi.json", timeout=60).text
    for headers, status in (({"Origin": EVIL}, 403), ({"Host": "evil.example"}, 421)):
        answer = requests.get(f"{server.address}/kbo/v1/source", headers=headers, timeout=60)
        assert answer.status_code == status
    assert "<h1>" in requests.get(f"{server.address}/kbo", timeout=60).text  # that of imports
    assert requests.get(f"{server.address}/kbo/status", timeout=60).status_code == 404


def test_progress_is_what_the_command_prints(
    server: Server, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    grown(instance)
    answer = requests.get(f"{server.address}/kbo/v1/imports/{FULL}/progress", timeout=60)
    assert answer.json() == {"data": json.loads(pipeline.kbo("status", str(FULL), "--json").stdout)}
    for name, status, line in (
        ("0999-update", 404, "0999-update: no such extract; see kbo status for the one at work"),
        ("140", 400, "'140' is not an extract; expected a key such as 0141-update"),
    ):
        answer = requests.get(f"{server.address}/kbo/v1/imports/{name}/progress", timeout=60)
        assert problem_of(answer) == (status, line)


@pytest.mark.parametrize("act", ["retry", "resume", "cancel"])
@pytest.mark.parametrize("extract", ["0999-update", "0140-full"])
def test_a_call_says_what_its_command_says(
    server: Server, pipeline: Pipeline, instance: dg.DagsterInstance, act: str, extract: str
) -> None:
    grown(instance)
    answer = call(server, f"/{extract}/{act}")
    said = pipeline.kbo("retry" if act == "resume" else act, extract, check=False)
    line = (said.stderr.removeprefix("kbo: ") or said.stdout).strip()
    if said.returncode:
        assert problem_of(answer) == (409, line)
    else:
        assert (answer.status_code, answer.json()) == (
            202,
            {"data": {"extract": extract, "message": line}},
        )


def test_what_is_no_extract_is_refused(server: Server, instance: dg.DagsterInstance) -> None:
    for path in (f"/140-full/{act}" for act in ACTS):
        assert problem_of(call(server, path))[0] == 400
    assert problem_of(call(server, "/0999-update/rollback")) == (
        409,
        "0999-update: no such extract; see kbo status for the one at work",
    )
    bodies: list[object] = [{}, [], *({"extract": e} for e in (140, "../../etc", "0141-update,x"))]
    for body in bodies:
        assert problem_of(start(server, body))[0] == 400
    deep = "[" * 100_000
    for text in ("{", deep, '{"extract": ' + deep, "\ud800".encode("utf-8", "surrogatepass")):
        answer = requests.post(
            f"{server.address}/kbo/v1/imports",
            data=text,
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        assert problem_of(answer)[0] == 400
    large = requests.post(f"{server.address}/kbo/v1/imports", data=b"a" * 2_000_000, timeout=60)
    assert problem_of(large)[0] == 413


def test_an_extract_without_a_zip_and_without_an_account_stays_unknown(
    server: Server, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    status, line = problem_of(start(server, {"extract": "0150-update"}))
    downloads, inbox = pipeline.directory / "downloads", pipeline.directory / "inbox"
    assert (status, line) == (
        409,
        f"0150-update: no ZIP of it in {downloads}, and KBO_USERNAME, KBO_PASSWORD not set; put the"
        f" ZIP into {inbox}",
    )
    assert instance.get_dynamic_partitions("kbo_extracts") == []


def test_what_is_due_is_started_by_dagster(
    server: Server, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    grown(instance)
    downloads = pipeline.directory / "downloads"
    downloads.mkdir(exist_ok=True)
    (downloads / "KboOpenData_0141_2025_10_06_Update.zip").write_bytes(b"for the run to refuse")
    asked: dict[str, Callable[[], requests.Response]] = {
        "stage_extract": lambda: start(server, {"extract": str(UPDATE)}),
        "rollback_extract": lambda: call(server, f"/{FULL}/rollback"),
    }
    for job, ask in asked.items():
        status, line = problem_of(ask())  # this server knows no code
        assert status == 409
        assert f": {job} was not started: " in line
    assert instance.get_dynamic_partitions("kbo_extracts") == [str(FULL), str(UPDATE)]


@pytest.mark.parametrize(
    "headers",
    [{"Origin": EVIL}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil"}],
)
def test_no_other_page_starts_anything(
    server: Server, instance: dg.DagsterInstance, headers: dict[str, str]
) -> None:
    for act in ACTS:
        assert call(server, f"/{FULL}/{act}", **headers).status_code in (403, 421)
    assert start(server, {"extract": str(UPDATE)}, **headers).status_code in (403, 421)
    assert instance.get_dynamic_partitions("kbo_extracts") == []


def test_nothing_is_started_by_looking(server: Server, instance: dg.DagsterInstance) -> None:
    for path in ("", *(f"/{FULL}/{act}" for act in ACTS)):
        answer = requests.get(f"{server.address}/kbo/v1/imports{path}", timeout=60)
        assert problem_of(answer)[0] == 405


def test_read_only_has_progress_alone(pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
    grown(instance)
    with web_server(pipeline, "--read-only") as (server, _):
        for act in ACTS:
            assert problem_of(call(server, f"/{FULL}/{act}"))[0] == 404
        assert problem_of(start(server, {"extract": str(UPDATE)}))[0] == 404
        answer = requests.get(f"{server.address}/kbo/v1/imports/{FULL}/progress", timeout=60)
        assert answer.json()["data"]["status"] == "completed"


def test_metrics_tell_batches_and_seconds_by_stage(
    server: Server, instance: dg.DagsterInstance
) -> None:
    def measured() -> dict[tuple[str, ...], float]:
        return samples(requests.get(f"{server.address}/kbo/metrics", timeout=60).text)

    found = measured()
    assert found["kbo_imports_readable",] == 1
    assert (found["kbo_batches", "waiting"], found["kbo_batches", "failed"]) == (0, 0)
    year = grown(instance, is_staged=True)
    batches = [f"{UPDATE}-0001", f"{UPDATE}-0002"]
    span = {RANGE_START_TAG: batches[0], RANGE_END_TAG: batches[1], "kbo/extract": str(UPDATE)}
    failure = dg.DagsterRunStatus.FAILURE
    year.run("apply_batches", ASSETS_OF_JOBS["apply_batches"], batches, span, failure)
    year.write()
    found = measured()
    assert (found["kbo_batches", "waiting"], found["kbo_batches", "failed"]) == (BATCHES - 2, 2)
    assert found["kbo_extract_number",] == 142
    stages = {name[1] for name in found if name[0] == "kbo_stage_seconds"}
    assert stages <= {"downloading", "staging", "applying", "publishing"}
