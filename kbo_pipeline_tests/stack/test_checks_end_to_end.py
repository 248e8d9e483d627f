"""Asset checks through Dagster: what the UI shows, what stops, and how a person lets it go on."""

import json
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.definitions import defs
from kbo_pipeline.operate.repair.alerts import due_alerts
from kbo_pipeline.operate.runs.progress import ACCEPT_LOSS_TAG
from kbo_pipeline.publish.checks import CHECKS
from kbo_pipeline.read.published import content_hash
from kbo_pipeline_tests.support.pipeline import Pipeline, materializations
from kbo_pipeline_tests.support.server import LOCATION, PATIENCE, Server, running_server
from kbo_pipeline_tests.support.sound import (
    CODES,
    Register,
    enterprise,
    update,
)
from kbo_pipeline_tests.support.zips import Row, write_extract

FULL, UPDATE, NEXT = "0140-full", "0141-update", "0142-update"
LOSS = (
    f"{UPDATE}: not published: contact: 29 of 1,000 rows lost (2.9 %), more than"
    f" KBO_MAX_LOSS_PERCENT (2); kbo publish {UPDATE} --accept-loss publishes it, or kbo"
    f" rollback {UPDATE} undoes it"
)
PLACES = {
    (table.name if table else "published_extract", check.name): check
    for check in CHECKS
    for table in check.tables
}


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A Full, an Update that loses 29 of 1000 contacts and brings a FAX, and an Update after it."""
    directory = tmp_path_factory.mktemp("zips")
    fax: list[Row] = [(enterprise(0), "ENT", "FAX", "02 124")]
    return [
        write_extract(directory, ExtractKey.parse(FULL), Register(1000).rows),
        update(
            directory,
            ExtractKey.parse(UPDATE),
            {"contact": fax},
            {"contact": [enterprise(n) for n in range(30)]},
        ),
        update(directory, ExtractKey.parse(NEXT), {"code": CODES}),
    ]


def hash_of(pipeline: Pipeline) -> str:
    with pipeline.read() as connection:
        return content_hash(connection)


def evaluations(instance: dg.DagsterInstance) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    """The newest result of each check, by the names of its asset and its own."""
    keys = [dg.AssetCheckKey(dg.AssetKey(asset), name) for asset, name in PLACES]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    results = {}
    for key, record in found.items():
        assert record.event is not None and record.event.dagster_event is not None
        data = record.event.dagster_event.event_specific_data
        assert isinstance(data, dg.AssetCheckEvaluation), key
        results[key.asset_key.to_user_string(), key.name] = data
    return results


def failing(instance: dg.DagsterInstance) -> dict[tuple[str, str], str]:
    """The severity of the newest result of each check that did not pass."""
    results = evaluations(instance)
    assert results.keys() == PLACES.keys()
    return {place: r.severity.value for place, r in results.items() if not r.passed}


def publications(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """The runs that publish, the newest first."""
    return list(instance.get_runs(dg.RunsFilter(job_name="publish_extract")))


@pytest.fixture
def imported(pipeline: Pipeline, zips: list[Path]) -> Pipeline:
    """A pipeline in which the Full is published, and the Update could not be."""
    del pipeline.settings["KBO_MAX_LOSS_PERCENT"]
    pipeline.kbo("import", zips[0])
    with pipeline.instance() as instance:
        assert failing(instance) == {}
    before = hash_of(pipeline)
    done = pipeline.kbo("import", zips[1], check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"kbo: {LOSS}\n",
    )
    assert hash_of(pipeline) == before
    return pipeline


def test_a_loss_keeps_an_update_from_readers_until_it_is_accepted(imported: Pipeline) -> None:
    before = hash_of(imported)
    with imported.instance() as instance:
        assert failing(instance) == {
            ("contact", "loss"): "ERROR",
            ("contact", "codes_known"): "WARN",
        }
        fax = evaluations(instance)["contact", "codes_known"]
        assert fax.metadata["extract"].value == UPDATE
        assert fax.metadata["count"].value == 1
        table = fax.metadata["sample"]
        assert isinstance(table, dg.TableMetadataValue)
        assert [record.data["code"] for record in table.records] == ["FAX"]

    status = json.loads(imported.kbo("status", UPDATE, "--json").stdout)
    assert (status["status"], status["error"]) == ("failed", LOSS)
    assert status["overall"]["completed"] == status["overall"]["total"]
    assert status["stage"] == "publishing" and 50 < status["overall"]["percentage"] < 100
    assert f"{UPDATE}: failed (publishing)" in imported.kbo("status").stdout
    for command in ("retry", "publish"):
        again = imported.kbo(command, UPDATE, check=False)
        assert (again.returncode, again.stderr.count("\n")) == (1, 1)
        assert LOSS in again.stderr
        assert hash_of(imported) == before

    done = imported.kbo("publish", UPDATE, "--accept-loss")
    assert done.stdout == f"{UPDATE}: published\n"
    with imported.instance() as instance:
        assert failing(instance) == {
            ("contact", "loss"): "WARN",
            ("contact", "codes_known"): "WARN",
        }
        runs = publications(instance)
        assert [ACCEPT_LOSS_TAG in run.tags for run in runs] == [True, *[False] * (len(runs) - 1)]
        (event,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("published_extract"), asset_partitions=[UPDATE]),
            limit=9,
        ).records
        assert event.asset_materialization is not None
        accepted_by = event.asset_materialization.metadata["loss_accepted_by"].value
        assert accepted_by == runs[0].tags[ACCEPT_LOSS_TAG] != ""
    with imported.read() as reader:
        assert reader.execute("SELECT count(*) FROM current.contact").fetchall() == [(971,)]

    for flags in ([], ["--accept-loss"]):
        again = imported.kbo("publish", UPDATE, *flags)
        assert again.stdout == f"{UPDATE}: already published: nothing to do\n"
    with imported.instance() as instance:
        assert len(publications(instance)) == len(runs)
        instance.delete_run(runs[0].run_id)  # as retention does: the results go too
        loss = dg.AssetCheckKey(dg.AssetKey("contact"), "loss")
        left = instance.event_log_storage.get_asset_check_execution_history(loss, limit=99)
        assert {record.run_id for record in left} == {run.run_id for run in publications(instance)}


@pytest.mark.rare
def test_a_full_cut_short_waits_is_told_of_and_can_be_accepted(
    pipeline: Pipeline, zips: list[Path], tmp_path: Path
) -> None:
    """A tenth of each table, as sound as it can be, for a gap of ten Updates."""
    del pipeline.settings["KBO_MAX_LOSS_PERCENT_FULL"]
    pipeline.kbo("import", zips[0])
    before, cut = hash_of(pipeline), "0150-full"
    rows = {name: rows[: max(1, len(rows) // 10)] for name, rows in Register(1000).rows.items()}
    zip_file = write_extract(tmp_path, ExtractKey.parse(cut), rows | {"code": CODES})
    done = pipeline.kbo("import", zip_file, check=False)
    assert done.returncode == 1
    assert f"{cut}: not published: enterprise: 900 of 1,000 rows lost (90.0 %)" in done.stderr
    assert f"kbo publish {cut} --accept-loss publishes it" in done.stderr
    assert hash_of(pipeline) == before
    with pipeline.instance() as instance:
        assert {("enterprise", "loss"), ("activity", "loss")} <= failing(instance).keys()
        assert {failing(instance)[place] for place in failing(instance)} == {"ERROR"}
        settings = load_settings(pipeline.settings, tmp_path)
        alerts = due_alerts(instance, settings, time.time())
        assert [(alert.kind, alert.extract) for alert in alerts] == [("failed", cut)]
        assert "KBO_MAX_LOSS_PERCENT_FULL (5)" in alerts[0].error
    doctor = pipeline.kbo("doctor", "--json", check=False)
    assert doctor.returncode == 1
    found = [f for f in json.loads(doctor.stdout)["data"] if f["subject"] == cut]
    assert [finding["severity"] for finding in found] == ["error"]
    assert "900 of 1,000 rows lost" in found[0]["text"]
    again = pipeline.kbo("retry", cut, check=False)
    assert (again.returncode, hash_of(pipeline)) == (1, before)
    pipeline.kbo("publish", cut, "--accept-loss")
    with pipeline.instance() as instance:
        assert {*failing(instance).values()} == {"WARN"}
    with pipeline.read() as reader:
        assert reader.execute("SELECT count(*) FROM current.enterprise").fetchall() == [(100,)]


@pytest.mark.rare
def test_an_update_with_a_loss_can_be_undone_instead(imported: Pipeline, zips: list[Path]) -> None:
    with imported.read() as reader:
        before = content_hash(reader)
    late = imported.kbo("import", zips[2], check=False)
    assert late.returncode == 1
    assert late.stderr.startswith(f"kbo: {NEXT}: {FULL} is published; {UPDATE} is expected")
    undone = imported.kbo("rollback", UPDATE)
    assert undone.stdout == f"{UPDATE}: rolled back; kbo retry {UPDATE} imports it again\n"
    assert hash_of(imported) == before
    with imported.read() as reader:
        jobs = reader.execute("SELECT id, status FROM import_jobs ORDER BY id").fetchall()
    assert jobs == [(FULL, "completed"), (UPDATE, "rolled_back")]

    for extract, text in (
        (UPDATE, "not staged; kbo import ZIP or kbo retry 0141-update does it"),
        (NEXT, f"{FULL} is published; {UPDATE} is expected, or a Full above it"),
        (
            "0139-full",
            f"{FULL} is published; an older Full is not taken; kbo rollback is the way back",
        ),
    ):
        refused = imported.kbo("publish", extract, "--accept-loss", check=False)
        assert (refused.returncode, refused.stderr) == (1, f"kbo: {extract}: {text}\n")
    imported.dagster(
        *("job", "execute", "-m", "kbo_pipeline.definitions", "-j", "stage_extract"),
        *("--tags", json.dumps({"dagster/partition": UPDATE})),
    )
    refused = imported.kbo("publish", UPDATE, check=False)
    assert refused.returncode == 1
    assert " batches are not applied; kbo retry 0141-update applies them" in refused.stderr

    imported.settings["KBO_MAX_LOSS_PERCENT"] = "3"
    retried = imported.kbo("retry", UPDATE)
    assert retried.stdout.startswith(f"{UPDATE}: ") and "publication" in retried.stdout
    with imported.instance() as instance:
        assert failing(instance) == {("contact", "codes_known"): "WARN"}


def checks_of(server: Server, asset: str) -> dict[str, dict[str, Any]]:
    """The checks of an asset as the UI lists them, by name."""
    found = server.query(
        "query($a: AssetKeyInput!) { assetNodeOrError(assetKey: $a) { ... on AssetNode {"
        " assetChecksOrError { __typename ... on AssetChecks { checks { name description"
        " canExecuteIndividually executionForLatestMaterialization { status runId"
        " evaluation { success severity description metadataEntries { label } } } } } } } } }",
        a={"path": [asset]},
    )["assetNodeOrError"]["assetChecksOrError"]
    assert found["__typename"] == "AssetChecks", found
    return {check["name"]: check for check in found["checks"]}


def launch(server: Server, job: str, tags: dict[str, str], **selection: Any) -> str:
    """Launches a run as the UI does; returns its id."""
    found = server.query(
        "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename"
        " ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }",
        p={
            "selector": {"jobName": job, **LOCATION, **selection},
            "mode": "default",
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        },
    )["launchRun"]
    assert found["__typename"] == "LaunchRunSuccess", found
    return str(found["run"]["runId"])


def handles(*places: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"assetKey": {"path": [asset]}, "name": name} for asset, name in places]


@pytest.mark.rare
def test_the_ui_shows_checks_runs_them_by_hand_and_accepts_a_loss(
    tmp_path: Path, zips: list[Path]
) -> None:
    pipeline = Pipeline(tmp_path)
    del pipeline.settings["KBO_MAX_LOSS_PERCENT"]
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for zip_file in zips:
        (downloads / zip_file.name).write_bytes(zip_file.read_bytes())
    with pipeline.instance(), running_server(pipeline) as server:
        # Before the first run, all are there with their descriptions.
        for (asset, name), check in PLACES.items():
            shown = checks_of(server, asset)[name]
            assert shown["description"].startswith(check.description), (asset, name)
            assert shown["canExecuteIndividually"] == "CAN_EXECUTE"
            assert shown["executionForLatestMaterialization"] is None
        # By hand there is nothing to look at yet: an error of one line.
        launch(server, "__ASSET_JOB", {}, assetSelection=[], assetCheckSelection=handles(*PLACES))
        server.wait_for_run("__ASSET_JOB", "FAILURE")

        for extract in (FULL, UPDATE):
            server.add_partition(extract)
            server.launch("stage_extract", extract)
        server.wait_for_run("publish_extract", "FAILURE")
        assert [run["status"] for run in server.runs("publish_extract")] == ["SUCCESS", "FAILURE"]
        loss = checks_of(server, "contact")["loss"]["executionForLatestMaterialization"]
        assert loss["status"] == "FAILED"
        assert (loss["evaluation"]["success"], loss["evaluation"]["severity"]) == (False, "ERROR")
        assert "29 of 1,000 rows lost" in loss["evaluation"]["description"]
        labels = [e["label"] for e in loss["evaluation"]["metadataEntries"]]
        assert {"extract", "count", "looked_at", "sample"} <= {*labels}
        before = hash_of(pipeline)

        # The sensors do not try again: nothing is new.
        server.wait_for_ticks(3, "apply_when_staged", "publish_when_applied")
        assert len(server.runs("publish_extract")) == 2
        assert hash_of(pipeline) == before
        assert any(LOSS in tick for tick in wait_for_alert(server))

        launch(
            server,
            "publish_extract",
            {"dagster/partition": UPDATE, ACCEPT_LOSS_TAG: "Ann"},
        )
        server.wait_for_run("publish_extract", "SUCCESS", count=2)
        loss = checks_of(server, "contact")["loss"]["executionForLatestMaterialization"]
        assert (loss["evaluation"]["success"], loss["evaluation"]["severity"]) == (False, "WARN")
        after = hash_of(pipeline)
        assert after != before

        # By hand: only what was chosen is looked at, and nothing is changed.
        chosen = [("contact", "codes_known"), ("published_extract", "ledger_equals_rows")]
        run = launch(
            server, "__ASSET_JOB", {}, assetSelection=[], assetCheckSelection=handles(*chosen)
        )
        server.wait_for_run("__ASSET_JOB", "SUCCESS")
        for asset, name in chosen:
            shown = checks_of(server, asset)[name]["executionForLatestMaterialization"]
            assert shown["runId"] == run
            assert shown["evaluation"]["success"] is (name == "ledger_equals_rows")
        assert checks_of(server, "contact")["loss"]["executionForLatestMaterialization"] == loss

        # Who materializes the last asset in the UI asks for its checks as well.
        run = launch(
            server,
            "__ASSET_JOB",
            {"dagster/partition": UPDATE},
            assetSelection=[{"path": ["code"]}, {"path": ["published_extract"]}],
        )
        server.wait_for_run("__ASSET_JOB", "SUCCESS", count=2)
        assert hash_of(pipeline) == after
        for asset, name in PLACES:
            shown = checks_of(server, asset)[name]["executionForLatestMaterialization"]
            assert shown["runId"] == run
            doubtful = asset == "contact" and name in ("loss", "codes_known")
            assert shown["status"] == ("FAILED" if doubtful else "SUCCEEDED"), (asset, name)
    with pipeline.instance() as instance:
        assert materializations(instance, "published_extract") == {FULL: 1, UPDATE: 2}


def wait_for_alert(server: Server) -> list[str]:
    """What the alert sensor has said, once it has said anything of a failure."""
    deadline = time.monotonic() + PATIENCE
    while True:
        ticks = server.ticks("alert_sensor")
        if any(f"({UPDATE}, publish_extract)" in tick for tick in ticks):
            return ticks
        assert time.monotonic() < deadline, ticks
        time.sleep(1)


def test_every_check_is_declared_and_no_job_runs_it_unasked() -> None:
    repository = defs.get_repository_def()
    declared = {
        (key.asset_key.to_user_string(), key.name)
        for key in repository.asset_graph.asset_check_keys
    }
    assert declared == PLACES.keys() | {("full_verification", "register_equals_full")}
    for job in ("apply_batches", "publish_extract", "stage_extract"):
        nodes = [node.name for node in defs.resolve_job_def(job).nodes]
        assert "check_published" not in nodes
