"""From ZIPs to the published register through the command line, against the generator's truth."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from kbo_pipeline.core.extracts import ExtractKey, key_in_file_name
from kbo_pipeline.core.tables import ALL_TABLES, CODE, DENOMINATION, ENTERPRISE, Table
from kbo_pipeline.operate.runs.progress import EXPORT_JOB, EXTRACT_TAG, SEARCH_JOB, VERIFY_JOB
from kbo_pipeline.sample.extracts import Sample, write_sample
from kbo_pipeline_tests.support.core import rows_of, sorted_rows
from kbo_pipeline_tests.support.pipeline import Pipeline, fetch, run_status, stale_partitions
from kbo_pipeline_tests.support.state_page import unnamed
from kbo_pipeline_tests.support.zips import Row

SAMPLE = Sample(enterprises=120, seed=7)
UPDATES = 3

READER = """
import json, select, sys
from kbo_pipeline.read.register import read_register
expected = json.loads(sys.argv[1])
seen = []
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.2)[0]:
    with read_register() as register:
        reader = register.connection
        number = reader.execute(
            "SELECT max(extract_number) FROM import_jobs WHERE status = 'completed'"
        ).fetchone()[0]
        counts = {
            name: reader.execute(f'SELECT count(*) FROM "current".{name}').fetchone()[0]
            for name in expected[str(number)]
        }
        unfinished = reader.execute(
            "SELECT count(*) FROM import_jobs WHERE status <> 'completed'"
        ).fetchone()[0]
    if counts != expected[str(number)] or unfinished:
        sys.exit(f"a mixture at {number}: {counts}, expected {expected[str(number)]}")
    seen.append(number)
print(json.dumps(seen))
"""


def state(table: Table, number: int) -> list[Row]:
    return sorted_rows(SAMPLE.rows(table.name, number))


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sample(tmp_path_factory.mktemp("zips"), SAMPLE, UPDATES)


@pytest.fixture(scope="module")
def numbers(zips: list[Path]) -> list[int]:
    return [key.number for zip_file in zips if (key := key_in_file_name(zip_file.name))]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, zips: list[Path]) -> Iterator[Pipeline]:
    """A pipeline with its server kept up between commands."""
    pipeline = Pipeline(tmp_path_factory.mktemp("data with ü {x} 'quotes'"))
    with pipeline.instance():
        pipeline.kbo("import", zips[0])
        yield pipeline


def test_each_extract_leads_to_the_true_state_while_a_reader_reads(
    pipeline: Pipeline, zips: list[Path], numbers: list[int]
) -> None:
    expected = {n: {t.name: len(state(t, n)) for t in ALL_TABLES} for n in numbers}
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, json.dumps(expected)],
        env=pipeline.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    for zip_file, number in zip(zips, numbers, strict=True):
        pipeline.kbo("import", zip_file)
        with pipeline.read() as connection:
            for table in ALL_TABLES:
                assert rows_of(connection, table, f"current.{table.name}") == state(table, number)
    out, errors = reader.communicate("stop\n", timeout=120)
    assert reader.returncode == 0, errors
    last = out.splitlines()[-1]  # DuckDB takes `python -c` for a person, who wants to see a bar
    assert sorted(set(json.loads(last))) == numbers
    assert unnamed(pipeline.directory) == []  # docs/state.md


def test_no_partition_is_out_of_sync_after_imports_a_rollback_or_a_wrong_name(
    pipeline: Pipeline, zips: list[Path]
) -> None:
    from kbo_pipeline.definitions import defs

    pipeline.kbo("import", *zips)
    with pipeline.instance() as instance:
        assert len(instance.get_dynamic_partitions("kbo_extracts")) == 5
        assert stale_partitions(instance) == []
        for command in ("rollback", "retry"):
            pipeline.kbo(command, str(key_in_file_name(zips[-1].name)))
            assert stale_partitions(instance) == [], command
        instance.add_dynamic_partitions("kbo_extracts", ["140"])
        assert stale_partitions(instance) == []
        result = defs.resolve_job_def("stage_extract").execute_in_process(
            instance=instance, partition_key="140", raise_on_error=False
        )
        assert not result.success
        assert "140" not in instance.get_dynamic_partitions("kbo_extracts")
        assert stale_partitions(instance) == []


def test_an_extract_is_rolled_back_while_others_read_it(
    pipeline: Pipeline, zips: list[Path]
) -> None:
    last = str(key_in_file_name(zips[-1].name))
    pipeline.kbo("import", *zips)
    waiting, at_work = dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED
    with pipeline.instance() as instance:
        runs = {
            (job, status): instance.add_run(
                dg.DagsterRun(job, status=status, tags={EXTRACT_TAG: last})
            )
            for job in (EXPORT_JOB, SEARCH_JOB, VERIFY_JOB)
            for status in (waiting, at_work)
        }
        pipeline.kbo("rollback", last)
        for (job, status), run in runs.items():
            is_void = status == waiting and job != SEARCH_JOB  # this is of whatever is published
            after = dg.DagsterRunStatus.CANCELED if is_void else status
            assert run_status(instance, run.run_id) == after, job
            instance.delete_run(run.run_id)


@pytest.mark.long
def test_history_holds_the_state_of_every_extract_and_their_differences(
    pipeline: Pipeline, zips: list[Path], numbers: list[int]
) -> None:
    pipeline.kbo("import", *zips)
    with pipeline.read() as connection:
        for table in ALL_TABLES:
            before: set[Row] = set()
            versions = 0
            for number in numbers:
                now = set(state(table, number))
                assert rows_of(connection, table, f"{table.name}_at({number})") == sorted_rows(now)
                for change, rows in (("added", now - before), ("removed", before - now)):
                    source = f"{table.name}_changes({number}) WHERE _change = '{change}'"
                    assert rows_of(connection, table, source) == sorted_rows(rows)
                versions += len(now - before)
                before = now
            assert fetch(connection, f"SELECT count(*) FROM main.{table.name}") == versions


@pytest.mark.long
def test_a_full_that_differs_from_nothing_adds_no_row_version(
    pipeline: Pipeline, zips: list[Path], numbers: list[int], tmp_path: Path
) -> None:
    pipeline.kbo("import", *zips)
    with pipeline.read() as connection:
        before = {t.name: fetch(connection, f"SELECT count(*) FROM {t.name}") for t in ALL_TABLES}
    last = numbers[-1]
    same = Sample(
        SAMPLE.enterprises,
        SAMPLE.seed,
        SAMPLE.first_number,
        (*SAMPLE.change_shares[: last - SAMPLE.first_number], 0.0),
    )
    assert sorted_rows(same.rows("activity", last + 1)) == sorted_rows(
        SAMPLE.rows("activity", last)
    )
    pipeline.kbo("import", same.write_full(tmp_path, last + 1))
    with pipeline.read() as connection:
        for table in ALL_TABLES:
            if table is not CODE:
                assert fetch(connection, f"SELECT count(*) FROM {table.name}") == before[table.name]
        assert fetch(connection, "SELECT max(extract_number) FROM import_jobs") == last + 1


@pytest.mark.long
def test_the_same_extract_twice_does_nothing_and_says_so(
    pipeline: Pipeline, zips: list[Path]
) -> None:
    before = pipeline.publication()
    done = pipeline.kbo("import", zips[0])
    assert done.stdout == "0140-full: already published: nothing to do\n"
    assert pipeline.publication() == before


@pytest.mark.long
def test_an_update_out_of_order_is_refused_with_the_number_that_is_expected(
    pipeline: Pipeline, numbers: list[int], tmp_path: Path
) -> None:
    with pipeline.read() as connection:
        newest = fetch(connection, "SELECT max(extract_number) FROM import_jobs")
    before = pipeline.publication()
    done = pipeline.kbo("import", SAMPLE.write_update(tmp_path, newest + 2), check=False)
    assert done.returncode == 1
    expected = ExtractKey(newest + 1, "update")
    assert len(done.stderr.splitlines()) == 1
    assert f"{expected} is expected" in done.stderr
    assert pipeline.publication() == before


@pytest.mark.long
def test_a_rename_without_an_enterprise_row_changes_the_primary_name(
    pipeline: Pipeline, zips: list[Path], numbers: list[int]
) -> None:
    pipeline.kbo("import", *zips)
    with pipeline.read() as connection:
        renamed = connection.execute(
            f"SELECT DISTINCT n.entity_number FROM {DENOMINATION.name}_changes({numbers[3]}) n"
            f" WHERE n.entity_number IN (SELECT enterprise_number FROM {ENTERPRISE.name}_at($1))"
            f" AND n.entity_number NOT IN"
            f" (SELECT enterprise_number FROM {ENTERPRISE.name}_changes({numbers[3]}))",
            [numbers[3]],
        ).fetchall()
        names = {
            number: dict(
                connection.execute(
                    f"SELECT enterprise_number, primary_name FROM {ENTERPRISE.name}_at({number})"
                ).fetchall()
            )
            for number in numbers[2:4]
        }
    assert renamed
    changed = [r for (r,) in renamed if names[numbers[2]].get(r) != names[numbers[3]][r]]
    assert changed


@pytest.mark.long
def test_primary_names_follow_the_documented_rule(
    pipeline: Pipeline, zips: list[Path], numbers: list[int]
) -> None:
    pipeline.kbo("import", *zips)
    names: dict[str, dict[str, list[str]]] = {}
    for entity, language, kind, name in SAMPLE.rows("denomination", numbers[-1]):
        if kind == "001":
            names.setdefault(str(entity), {}).setdefault(str(language), []).append(str(name))
    with pipeline.read() as connection:
        rows = connection.execute(
            "SELECT enterprise_number, primary_name, primary_name_language, primary_name_nl,"
            " primary_name_fr, primary_name_de FROM enterprise_at($1)",
            [numbers[-1]],
        ).fetchall()
    assert {language for _, _, language, *_ in rows} >= {"0", "1", "2", None}
    for number, name, language, dutch, french, german in rows:
        mine = {code: min(found) for code, found in names.get(number, {}).items()}
        first = next((code for code in "21034" if code in mine), None)
        assert (name, language) == ((mine[first], first) if first else (number, None))
        assert (dutch, french, german) == (mine.get("2"), mine.get("1"), mine.get("3"))


@pytest.mark.long
def test_status_of_a_published_extract_has_the_promised_fields(pipeline: Pipeline) -> None:
    found = json.loads(pipeline.kbo("status", "0140-full", "--json").stdout)
    assert list(found) == [
        "job_id",
        "extract_number",
        "status",
        "stage",
        "stage_percentage",
        "overall",
        "operation",
        "seconds_left",
        "paused",
        "tables",
        "current_batch",
        "next_batch",
        "failed_batches",
        "error",
        "rejected_rows",
        "proof",
    ]
    assert (found["job_id"], found["extract_number"]) == ("0140-full", 140)
    assert (found["status"], found["stage"]) == ("completed", "done")
    total = found["overall"]["total"]
    assert found["overall"] == {"completed": total, "total": total, "percentage": 100.0}
    assert total == 7 * found["tables"]["activity"]["total"]
    assert found["current_batch"] is found["next_batch"] is found["error"] is None
    assert found["failed_batches"] == []


@pytest.mark.long
def test_two_imports_of_one_extract_at_once_publish_it_once(
    tmp_path: Path, zips: list[Path]
) -> None:
    pipeline = Pipeline(tmp_path)
    codes: list[int] = []
    with pipeline.instance() as instance:
        threads = [
            threading.Thread(
                target=lambda: codes.append(
                    pipeline.kbo_process("import", zips[0], check=False).returncode
                )
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 0 in codes
        records = instance.fetch_materializations(
            dg.AssetKey("published_extract"), limit=10
        ).records
        assert len(records) == 1
