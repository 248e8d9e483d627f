"""Rows set aside, through Dagster and the commands: who is told, and how it goes on."""

import json
from pathlib import Path

import dagster as dg

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import CONTACT
from kbo_pipeline.operate.runs.progress import ACCEPT_FAULTS_TAG
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.zips import csv_text, rows_for, write_extract

FULL, UPDATE, NEXT = "0140-full", "0141-update", "0142-update"
NUMBERS = [f"0200.{number:03d}.000" for number in range(30)]


def with_faults(directory: Path, key: str, faulty: int) -> Path:
    """An extract of which so many contacts cannot be read, and one is new."""
    extract = ExtractKey.parse(key)
    rows = rows_for(NUMBERS, "a") if extract.type == "full" else {}
    contacts = [*rows.get("contact", ()), (NUMBERS[0], "ENT", "TEL", key)]
    text = csv_text(CONTACT.columns, contacts) + '"x","ENT","TEL","secret"\n' * faulty
    name = "contact.csv" if extract.type == "full" else "contact_insert.csv"
    return write_extract(directory, extract, rows, members={name: text})


def phones(pipeline: Pipeline) -> list[str]:
    with pipeline.read() as connection:
        found = connection.execute(
            "SELECT value FROM \"current\".contact WHERE contact_type = 'TEL' ORDER BY 1"
        )
        return [value for (value,) in found.fetchall()]


def test_few_are_told_everywhere_and_many_wait_for_a_person(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    full = with_faults(tmp_path, FULL, 2)
    full = full.rename(full.with_name("KboOpenData_0140_2024_01_01_Full.zip"))
    done = pipeline.kbo("import", full)
    _, warning = done.stderr.splitlines()  # the first: it has no codes
    assert warning.startswith(f"kbo: warning: {FULL}: {full.name}: made on ")
    assert done.stdout.rstrip().endswith("; 2 rows set aside, see the table rejected_row")
    with pipeline.read() as connection:
        rows = connection.execute("FROM rejected_row ORDER BY line").fetchall()
    raw = '"x","ENT","TEL","secret"'
    expected = (FULL, "contact.csv", 33, raw, "EntityNumber", "no number of that kind")
    assert rows == [expected, (*expected[:2], 34, *expected[3:])]
    assert "rows set aside: 2; see the table rejected_row" in pipeline.kbo("status").stdout
    assert json.loads(pipeline.kbo("status", "--json").stdout)["rejected_rows"] == 2
    findings = json.loads(pipeline.kbo("doctor", "--json").stdout)["data"]
    texts = [finding["text"] for finding in findings]
    assert "2 rows of its ZIP could not be read and were set aside" in texts
    page = (pipeline.directory / "reports" / FULL / "report.md").read_text()
    assert "| contact.csv | 33 | EntityNumber | no number of that kind |" in page
    assert "secret" not in page
    with pipeline.instance() as instance:
        key = dg.AssetCheckKey(dg.AssetKey("published_extract"), "rows_set_aside")
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        assert record.event is not None and record.event.dagster_event is not None
        result = record.event.dagster_event.event_specific_data
        assert isinstance(result, dg.AssetCheckEvaluation)
        assert (result.passed, result.severity.value) == (False, "WARN")
        assert result.metadata["count"].value == 2
    verified = pipeline.kbo("verify", full)
    assert verified.stdout.rstrip().endswith("; 2 rows of the ZIP are set aside")

    refused = pipeline.kbo("import", with_faults(tmp_path, UPDATE, 30), check=False)
    assert refused.returncode == 1
    assert f"kbo retry {UPDATE} --accept-faults" in refused.stderr
    assert phones(pipeline) == [FULL]
    assert json.loads(pipeline.kbo("status", "--json").stdout)["status"] == "failed"
    pipeline.kbo("retry", UPDATE, "--accept-faults")
    assert phones(pipeline) == [FULL, UPDATE]
    with pipeline.instance() as instance:
        (run,) = instance.get_runs(dg.RunsFilter(job_name="stage_extract"), limit=1)
        assert run.tags["kbo/extract"] == UPDATE
        wanted = dg.AssetRecordsFilter(
            asset_key=dg.AssetKey("import_staging_contact"), asset_partitions=[UPDATE]
        )
        (event,) = instance.fetch_materializations(wanted, limit=10).records
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        assert metadata["faults_accepted_by"].value == run.tags[ACCEPT_FAULTS_TAG]
        assert metadata["rejected_rows"].value == 30

    assert pipeline.kbo("import", with_faults(tmp_path, NEXT, 30), check=False).returncode == 1
    assert pipeline.kbo("publish", NEXT, "--accept-faults").stdout == f"{NEXT}: published\n"
    assert phones(pipeline) == [FULL, UPDATE, NEXT]
    with pipeline.read() as connection:
        counts = connection.execute(
            "SELECT extract, count(*) FROM rejected_row GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert counts == [(FULL, 2), (UPDATE, 30), (NEXT, 30)]
    assert not list((pipeline.directory / "rejected").iterdir())
