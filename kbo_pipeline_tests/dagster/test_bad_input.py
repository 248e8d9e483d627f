"""All faulty input of docs/bad-input.md: refused as written there, and nothing has changed."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterEventType, DagsterRunStatus, RunsFilter, TableMetadataValue

from kbo_pipeline.core.tables import BRANCH
from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.zips import csv_text
from kbo_pipeline_tests.tools.bad_input.cases import UPDATE, Case, update
from kbo_pipeline_tests.tools.bad_input.feeding import GROUPS, Bench, page

PAGE = (REPOSITORY / "docs" / "bad-input.md").read_text()
CASES = [(group, case) for group, cases in GROUPS.items() for case in cases()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("bad")) as bench:
        yield bench


@pytest.mark.long
@pytest.mark.parametrize(("group", "case"), CASES, ids=[case.name for _, case in CASES])
def test_it_is_refused_as_written_and_changes_nothing(group: str, case: Case, bench: Bench) -> None:
    result = bench.feed(case)
    assert result.problems == ()
    assert page([(group, case, result.error)]).splitlines()[-1] in PAGE.splitlines()


def test_the_page_names_every_case_and_no_other() -> None:
    names = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| ")]
    lines = page([(group, case, "") for group, case in CASES]).splitlines()
    assert names == [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    assert len(CASES) >= 120


@pytest.mark.long
def test_all_that_is_wrong_is_told_in_a_report_and_in_the_run_until_a_sound_zip_comes(
    bench: Bench, tmp_path: Path
) -> None:
    pipeline = bench.filled
    rejected = pipeline.directory / "rejected" / str(UPDATE)
    columns = ("file", "line", "byte", "column", "reason", "found")
    bad = update(
        tmp_path,
        {
            "branch_insert.csv": csv_text(BRANCH.columns, [])
            + '"9.000.006.626",31-02-2020,"0200.065.765"\n"=1+1",,"none"\n',
            "contact_delete.csv": b"",
        },
    )
    content = bad.read_bytes()
    expected = [
        ("contact_delete.csv", "", "", "", "an empty file, without even a header", ""),
        ("branch_insert.csv", "2", "52", "StartDate", "no date dd-mm-yyyy", "'31-02-2020'"),
        ("branch_insert.csv", "3", "78", "Id", "no number of that kind", "'=1+1'"),
        ("branch_insert.csv", "3", "86", "EnterpriseNumber", "no number of that kind", "'none'"),
    ]
    refused = pipeline.kbo("import", bad, check=False)
    assert refused.returncode == 1
    assert "and 3 more faults" in refused.stderr
    assert (rejected / bad.name).read_bytes() == content
    with (rejected / "report.csv").open(newline="") as report:
        rows = [tuple(row) for row in csv.reader(report)]
    assert rows == [columns, *expected]
    with pipeline.instance() as instance:
        (run,) = instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.FAILURE]), limit=1)
        failures = [
            event.dagster_event.step_failure_data.user_failure_data
            for event in instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_FAILURE)
            if event.dagster_event is not None
        ]
    (table,) = [data.metadata["faults"] for data in failures if data and data.metadata]
    assert isinstance(table, TableMetadataValue)
    shown = [
        tuple("" if r.data[name] is None else str(r.data[name]) for name in columns)
        for r in table.records
    ]
    assert shown == expected

    bad.unlink()
    pipeline.kbo("import", update(tmp_path))
    assert not rejected.exists()


@pytest.mark.long
@pytest.mark.parametrize("key", ["../../x", "0141-update/x", "0141-update,0142-update", "x y", "'"])
def test_a_partition_that_is_no_extract_does_nothing(key: str, bench: Bench) -> None:
    """As somebody can type it in the UI."""
    from kbo_pipeline.definitions import defs

    before = bench.contents()
    with bench.filled.instance() as instance:
        for job in ("stage_extract", "publish_extract", "rollback_extract"):
            instance.add_dynamic_partitions("kbo_extracts", [key])
            result = defs.resolve_job_def(job).execute_in_process(
                instance=instance, partition_key=key, raise_on_error=False
            )
            assert not result.success
            failures = [e for e in result.all_events if e.is_step_failure]
            assert "is not an extract; expected a key such as 0141-update" in str(
                failures[0].step_failure_data.error_display_string
            )
            assert key not in instance.get_dynamic_partitions("kbo_extracts"), job
    assert bench.contents() == before
