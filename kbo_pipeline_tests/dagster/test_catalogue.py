"""What the UI says of every asset: before anything is imported, and of an import."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.snap.snap_to_yaml import default_values_yaml_from_type_snap

from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES, Table
from kbo_pipeline.definitions import defs
from kbo_pipeline.read.changes import KINDS
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.pipeline import Pipeline

SPECS = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
STAGING = {table.name: f"import_staging_{table.name}" for table in ALL_TABLES}
UPDATE = "0141-update"
GROUPS = ["download", "staging", "register", "publish", "export"]
NO_TABLE = {"extract_zip", "full_verification", "search_index"}
NOT_IMPORTED = {"parquet_export", "full_verification", "search_index"}


def columns_of(name: str) -> dict[str, dg.TableColumn]:
    schema = SPECS[name].metadata["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchema)
    return {column.name: column for column in schema.columns}


def lineage_of(name: str) -> dict[str, list[tuple[str, str]]]:
    lineage = SPECS[name].metadata["dagster/column_lineage"]
    assert isinstance(lineage, dg.TableColumnLineage)
    return {
        column: [(dep.asset_key.to_user_string(), dep.column_name) for dep in deps]
        for column, deps in lineage.deps_by_column.items()
    }


@pytest.mark.parametrize("name", sorted(SPECS))
def test_each_asset_says_what_it_is_whose_and_of_which_columns(name: str) -> None:
    spec = SPECS[name]
    assert spec.description is not None and len(spec.description.split()) > 15
    assert list(spec.owners) == ["team:register"]
    assert spec.kinds
    assert spec.tags["kbo/verb"] in ("fetch", "stage", "apply", "publish")
    assert spec.group_name in GROUPS
    assert [c.name for c in columns_of(name).values() if not (c.type and c.description)] == []


@pytest.mark.parametrize("name", sorted(SPECS.keys() - NO_TABLE))
def test_columns_come_from_columns_that_there_are_in_assets_before(name: str) -> None:
    lineage = lineage_of(name)
    assert lineage.keys() <= columns_of(name).keys()
    before = {dep.asset_key.to_user_string() for dep in SPECS[name].deps}
    for deps in lineage.values():
        for asset, column in deps:
            assert asset in before
            assert column in columns_of(asset)


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.name)
def test_each_column_leads_back_to_its_csv(table: Table) -> None:
    for column in table.columns:
        name = column.name
        assert lineage_of("published_extract")[f"{table.name}.{name}"] == [(table.name, name)]
        assert lineage_of(table.name)[name] == [(STAGING[table.name], name)]
        (origin,) = lineage_of(STAGING[table.name])[name]
        assert origin == ("extract_zip", f"{table.name}.csv {column.csv_name}")
        assert columns_of(table.name)[name].type == column.type
        if column.code_category:
            assert column.code_category in str(columns_of(table.name)[name].description)


def test_groups_follow_each_other_from_left_to_right() -> None:
    for spec in SPECS.values():
        for dep in spec.deps:
            before = SPECS[dep.asset_key.to_user_string()]
            assert GROUPS.index(str(before.group_name)) <= GROUPS.index(str(spec.group_name))


def test_a_launchpad_begins_without_config() -> None:
    for job in defs.get_repository_def().get_all_jobs():
        snap = job.get_job_snapshot()
        types = snap.config_schema_snapshot
        root = types.get_config_snap(str(snap.mode_def_snaps[0].root_config_key))
        assert "config" not in default_values_yaml_from_type_snap(types, root), job.name


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """Dagster's records of a Full and an Update."""
    zips = tmp_path_factory.mktemp("zips")
    sample = Sample(enterprises=60, seed=3)
    pipeline = Pipeline(tmp_path_factory.mktemp("data"), {"KBO_MAX_BATCHES": "3"})
    with pipeline.instance() as instance:
        pipeline.kbo("import", sample.write_full(zips, 140), sample.write_update(zips, 141))
        yield instance


def newest(instance: dg.DagsterInstance, asset: str, partition: str) -> dict[str, Any]:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition]), limit=1
    ).records
    assert records, (asset, partition)
    found = records[0].asset_materialization
    assert found is not None
    return {name: value.value for name, value in found.metadata.items()}


def test_each_materialization_has_numbers_to_plot_and_a_preview(
    imported: dg.DagsterInstance,
) -> None:
    last = sorted(k for k in imported.get_dynamic_partitions("kbo_batches") if UPDATE in k)[-1]
    numbers = {
        "extract_zip": {"bytes", "seconds"},
        **{STAGING[t.name]: {"dagster/row_count", "bytes", "seconds"} for t in ALL_TABLES},
        **{table.name: {"rows_changed", "records", "seconds"} for table in TABLES},
        CODE.name: {"dagster/row_count", "rows_changed", "seconds"},
        "published_extract": {
            *("bytes", "seconds", "rows_changed"),
            *(f"rows/{table.name}" for table in ALL_TABLES),
            *(f"rows_changed/{table.name}" for table in TABLES),
        },
        "change_report": {
            *("dagster/row_count", "bytes", "seconds", "entities", "rows_changed"),
            *(f"changes/{kind.table.name}/{kind.name}" for kind in KINDS),
        },
    }
    assert numbers.keys() == SPECS.keys() - NOT_IMPORTED
    for asset, names in numbers.items():
        is_table = asset in {table.name for table in TABLES}
        found = newest(imported, asset, last if is_table else UPDATE)
        assert {n for n in names if not isinstance(found.get(n), int | float)} == set(), asset
        assert found["preview"].schema.columns, asset
        assert len(found["preview"].records) <= 10, asset
    changed = newest(imported, "published_extract", UPDATE)
    assert changed["rows_changed"] > 0
    batches = [k for k in imported.get_dynamic_partitions("kbo_batches") if UPDATE in k]
    for table in TABLES:
        by_batch = [newest(imported, table.name, batch)["rows_changed"] for batch in batches]
        assert changed[f"rows_changed/{table.name}"] == sum(by_batch), table.name


def test_made_up_enterprises_have_known_codes(imported: dg.DagsterInstance) -> None:
    check = dg.AssetCheckKey(dg.AssetKey(TABLES[0].name), "codes_known")
    found = imported.event_log_storage.get_asset_check_execution_history(check, limit=5)
    assert [execution.status.value for execution in found] == ["SUCCEEDED", "SUCCEEDED"]


def test_the_report_is_a_page_with_its_plot_in_it(imported: dg.DagsterInstance) -> None:
    found = newest(imported, "change_report", UPDATE)
    page = Path(found["file"]).read_text()
    shown = str(found["report"])
    assert len(shown) < 60_000  # it goes into PostgreSQL
    head, address, rest = re.split(r"\]\((data:image/png;base64,[^)]+)\)", shown)
    assert f"{head}](plot.png){rest}" == page
    plot = Path(found["file"]).with_name("plot.png").read_bytes()
    assert base64.b64decode(address.partition(",")[2]) == plot
    assert found["rows_changed"] == newest(imported, "published_extract", UPDATE)["rows_changed"]
    first = newest(imported, "change_report", "0140-full")
    assert "all of it is new" in str(first["report"])
    assert "preview" not in first


def test_each_batch_has_four_numbers_and_the_last_one_what_the_run_did(
    imported: dg.DagsterInstance,
) -> None:
    batches = sorted(k for k in imported.get_dynamic_partitions("kbo_batches") if "full" in k)
    assert len(batches) == 3
    published = newest(imported, "published_extract", "0140-full")
    numbers = {"percent", "records", "rows_changed", "seconds"}
    for table in TABLES:
        *first, last = [newest(imported, table.name, batch) for batch in batches]
        assert [found.keys() for found in first] == [numbers, numbers]
        assert [found["percent"] for found in (*first, last)] == [33.3, 66.7, 100.0]
        assert last["dagster/row_count"] == published[f"rows/{table.name}"]
    records = newest(imported, TABLES[0].name, batches[-1])["progress"].records
    counted = {r.data["table"]: r.data["rows_opened"] for r in records}
    assert counted == {
        **{table.name: published[f"rows/{table.name}"] for table in TABLES},
        "all": sum(published[f"rows/{table.name}"] for table in TABLES),
    }


def test_each_batch_has_a_line_in_the_log_and_no_event_more(imported: dg.DagsterInstance) -> None:
    (run,) = [
        run
        for run in imported.get_runs(dg.RunsFilter(job_name="apply_batches"))
        if UPDATE in run.tags["kbo/extract"]
    ]
    logs = imported.all_logs(run.run_id)
    batches = [k for k in imported.get_dynamic_partitions("kbo_batches") if UPDATE in k]
    lines = [log.user_message for log in logs if re.match(rf"{UPDATE}-\d", log.user_message)]
    assert [line.partition(" (")[0] for line in lines] == [
        f"{batch}, {n} of {len(batches)}" for n, batch in enumerate(batches, start=1)
    ]
    events = [
        log for log in logs if log.dagster_event and log.dagster_event.is_step_materialization
    ]
    assert len(events) == len(TABLES) * len(batches)
