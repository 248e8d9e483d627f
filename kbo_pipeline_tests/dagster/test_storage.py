"""What our storage does otherwise than Dagster's own."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import event

from kbo_pipeline.commands.runs import import_extract
from kbo_pipeline.core.errors import SettingsError
from kbo_pipeline.core.extracts import BatchKey
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.fetch.archive import read_extract
from kbo_pipeline.operate.instance import INSTANCE_FILE, prepare_dagster_home
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.pipeline import Pipeline, materializations


def test_events_that_come_together_are_stored_by_one_statement(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    zip_file = Sample(enterprises=60, seed=5).write_full(tmp_path, 140)
    stored: list[int] = []  # rows of each statement that stores events
    with pipeline.instance() as instance:
        storage = instance.event_log_storage
        assert isinstance(storage, PostgresEventLogStorage)

        @event.listens_for(storage._engine, "before_cursor_execute")
        def note(_: object, __: object, statement: str, *more: Any) -> None:
            if statement.startswith("INSERT INTO event_logs"):
                places = re.findall(r"%\(run_id_m(\d+)\)s", statement)
                stored.append(len(places) or 1)

        try:
            import_extract(instance, load_settings(), zip_file, read_extract(zip_file))
        finally:
            event.remove(storage._engine, "before_cursor_execute", note)
        batches = sorted(
            instance.get_dynamic_partitions("kbo_batches"),
            key=lambda key: BatchKey.parse(key).number,
        )
        assert len(batches) > 2
        # What the run that applies is to make, and then what it has made of each batch.
        applied = [rows for rows in stored if rows % len(TABLES) == 0]
        assert applied == [len(TABLES) * len(batches), *[len(TABLES)] * len(batches)]
        for table in TABLES:
            assert materializations(instance, table.name) == dict.fromkeys(batches, 1)
            newest = instance.get_latest_materialization_event(dg.AssetKey(table.name))
            assert newest is not None
            assert newest.asset_materialization is not None
            assert newest.asset_materialization.partition == batches[-1]


def test_a_dagster_yaml_that_names_the_modules_of_before_is_opened(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "data", {"DAGSTER_HOME": str(tmp_path)})
    text = INSTANCE_FILE.read_text()
    for now, before in (
        ("kbo_pipeline.operate.processes.storage", "kbo_pipeline.defs.storage"),
        ("kbo_pipeline.operate.runs.recovery", "kbo_pipeline.defs.launching"),
    ):
        assert now in text
        text = text.replace(now, before)
    (tmp_path / "dagster.yaml").write_text(text)
    code = "import dagster as dg; i = dg.DagsterInstance.get(); print(i.get_runs(), i.run_launcher)"
    out = pipeline.run("-c", code).stdout
    assert out.startswith("[] ") and "KboRunLauncher" in out


@pytest.mark.parametrize("name", ["data [old]", "data*"])
def test_a_directory_in_which_dagster_would_silently_use_sqlite_is_refused(
    tmp_path: Path, name: str
) -> None:
    settings = load_settings({"KBO_DATA_DIR": str(tmp_path / name)})
    with pytest.raises(SettingsError, match="Dagster does not find its configuration"):
        prepare_dagster_home(settings)
    assert not (tmp_path / name).exists()
