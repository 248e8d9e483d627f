"""The view `kbo_queue` in PostgreSQL, against what Dagster's instance says, and who may read it."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from zipfile import ZipFile

import dagster as dg
import psycopg2
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.dagster_run import RunRecord
from psycopg2 import errors, sql
from psycopg2.extras import RealDictCursor

from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.defs import jobs
from kbo_pipeline.operate.processes import queue_view, storage
from kbo_pipeline.operate.processes.postgres import embedded_server_url, sqlalchemy_url
from kbo_pipeline.operate.runs import progress
from kbo_pipeline.operate.runs.progress import (
    EXTRACT_TAG,
    RANGE_END_TAG,
    RANGE_START_TAG,
    extract_of,
)
from kbo_pipeline.operate.runs.status import failure_message
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.postgres import embedded, leave, password_server

COLUMNS = {
    "id": "text",
    "job_type": "text",
    "payload": "jsonb",
    "status": "text",
    "retry_count": "integer",
    "max_retries": "integer",
    "error_message": "text",
    "created_at": "timestamp with time zone",
    "started_at": "timestamp with time zone",
    "completed_at": "timestamp with time zone",
    "extract": "text",
}
STATUSES = {
    "pending": {"NOT_STARTED", "QUEUED", "MANAGED"},
    "processing": {"STARTING", "STARTED", "SUSPENDED", "CANCELING"},
    "completed": {"SUCCESS"},
    "failed": {"FAILURE", "CANCELED"},
}
REPOSITORY_ORIGIN = RemoteRepositoryOrigin(
    RegisteredCodeLocationOrigin("kbo_pipeline"), "__repository__"
)
SECRET = "weak@ s:ecret"
START = """
from kbo_pipeline.defs.storage import KboPostgresStorage
storage = KboPostgresStorage.from_config_value(None, {})
print(storage.run_storage.get_runs_count(), flush=True)
"""

START_FOUR = f"""
import os
import kbo_pipeline.operate.processes.storage
children = 0
for _ in range(2):
    children = children + 1 if os.fork() else 0
{START}
for _ in range(children):
    assert os.wait()[1] == 0
"""


@dg.op
def fails_deep() -> None:
    try:
        try:
            raise ValueError("  the cause\nof it all")
        except ValueError as error:
            raise KeyError("the consequence") from error
    except KeyError as error:
        raise RuntimeError("the end\x00") from error


@dg.op
def fails_with_nul() -> None:
    raise ValueError("a \x00 in it")


@dg.job
def failing_job() -> None:
    fails_deep()


@dg.job
def failing_job_with_nul() -> None:
    fails_with_nul()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A published extract, one that fails, and runs in all states."""
    directory = tmp_path_factory.mktemp("queue")
    pipeline = Pipeline(directory / "data")
    sample = Sample(enterprises=60, seed=3)
    damaged = damage(sample.write_update(directory, 141))
    with embedded(pipeline.directory / "postgres") as server, pipeline.instance() as instance:
        full = sample.write_full(directory, 140)
        assert pipeline.kbo("import", full, damaged, check=False).returncode == 1
        failing_job.execute_in_process(instance=instance, raise_on_error=False)
        failing_job_with_nul.execute_in_process(instance=instance, raise_on_error=False)
        add_runs(instance)
        yield pipeline
        storage._engine(embedded_server_url(server), server).dispose()
        leave(server)


def damage(zip_file: Path) -> Path:
    """Writes the ZIP again, with another header in one file."""
    damaged = zip_file.parent / "damaged" / zip_file.name
    damaged.parent.mkdir()
    with ZipFile(zip_file) as sound, ZipFile(damaged, "w") as target:
        for name in sound.namelist():
            text = sound.read(name)
            target.writestr(
                name, text.replace(b"EntityNumber", b"x") if "activity" in name else text
            )
    return damaged


def add_runs(instance: dg.DagsterInstance) -> None:
    """Records runs as the UI, a backfill, the daemon and Ctrl-C leave them."""
    tables = {dg.AssetKey(table.name) for table in TABLES}
    batches = {RANGE_START_TAG: "0141-update-0001", RANGE_END_TAG: "0141-update-0006"}
    for status in dg.DagsterRunStatus:
        add_run(instance, "stage_extract", status, {"dagster/partition": "0142-update"})
    queued = dg.DagsterRunStatus.QUEUED
    add_run(instance, "apply_batches", queued, {EXTRACT_TAG: "0141-update", **batches})
    add_run(instance, "__ASSET_JOB", queued, batches, tables)
    add_run(instance, "__ASSET_JOB", queued, {}, {dg.AssetKey("extract_zip")})
    add_run(instance, "__ASSET_JOB", queued, {}, {dg.AssetKey("code")})
    add_run(instance, "__ASSET_JOB", queued, {}, tables | {dg.AssetKey(["code", "x"])})
    add_run(instance, "__ASSET_JOB", queued, {"dagster/partition": "not-ours, 0141-update"})
    retried = {"dagster/retry_number": "2", "dagster/max_retries": "5"}
    add_run(instance, "publish_extract", queued, retried)
    add_run(instance, "publish_extract", queued, {"dagster/max_retries": "many"})
    for text in ("stopped by Ctrl-C or SIGTERM", None):
        canceled = add_run(instance, "apply_batches", dg.DagsterRunStatus.STARTED, batches)
        instance.report_run_canceled(canceled, text)
    died = add_run(instance, "apply_batches", dg.DagsterRunStatus.STARTED, batches)
    instance.report_run_failed(died, "the process of this run died\nwith its daemon")


def add_run(
    instance: dg.DagsterInstance,
    job_name: str,
    status: dg.DagsterRunStatus,
    tags: dict[str, str],
    assets: set[dg.AssetKey] | None = None,
) -> dg.DagsterRun:
    config = {"ops": {"a": {"config": {"b": None}}}}
    return instance.add_run(
        dg.DagsterRun(
            job_name=job_name,
            status=status,
            tags=tags,
            asset_selection=assets,
            run_config=config,
            remote_job_origin=REPOSITORY_ORIGIN.get_job_origin(job_name),
        )
    )


def address(pipeline: Pipeline, role: str = queue_view.READER) -> str:
    url = embedded_server_url(pipeline.directory / "postgres")
    return url.replace("+psycopg2", "").replace("postgres@", f"{role}@")


def select(url: str, query: str) -> list[dict[str, Any]]:
    with (
        closing(psycopg2.connect(url)) as connection,
        connection.cursor(cursor_factory=RealDictCursor) as cursor,
    ):
        cursor.execute(query)
        return [dict(row) for row in cursor.fetchall()]


def execute(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def made(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Which view there is; another one after it was made or replaced again."""
    return select(
        address(pipeline, "postgres"),
        "SELECT c.oid, w.xmin::text, obj_description(c.oid, 'pg_class')"
        " FROM pg_class c JOIN pg_rewrite w ON w.ev_class = c.oid WHERE relname = 'kbo_queue'",
    )


def expected_error(instance: dg.DagsterInstance, record: RunRecord) -> str | None:
    run = record.dagster_run
    if run.status not in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
        return None
    types = {dg.DagsterEventType.STEP_FAILURE}
    if run.status == dg.DagsterRunStatus.FAILURE and (
        logs := instance.all_logs(run.run_id, of_type=types)
    ):
        assert logs[-1].dagster_event is not None
        return failure_message(logs[-1].dagster_event).replace("\0", "\ufffd")
    types = {dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED}
    if logs := instance.all_logs(run.run_id, of_type=types):
        assert logs[-1].dagster_event is not None
        return (logs[-1].dagster_event.message or "").split("\n")[0]
    word = "failed" if run.status == dg.DagsterRunStatus.FAILURE else "canceled"
    return f"{word} without a message"


def expected_payload(run: dg.DagsterRun) -> dict[str, Any]:
    payload: dict[str, Any] = {"run_config": run.run_config}
    if "dagster/partition" in run.tags:
        payload["partition"] = run.tags["dagster/partition"]
    if RANGE_START_TAG in run.tags:
        ends = {"start": run.tags[RANGE_START_TAG], "end": run.tags[RANGE_END_TAG]}
        payload["partition_range"] = ends
    if run.asset_selection:
        names = sorted(key.to_user_string() for key in run.asset_selection)
        payload["asset_selection"] = names
    return payload


def seconds(instant: datetime | None) -> Any:
    return None if instant is None else pytest.approx(instant.timestamp(), abs=1e-5)


def test_every_column_is_what_dagster_says(pipeline: Pipeline) -> None:
    url = address(pipeline)
    rows = {row["id"]: row for row in select(url, "SELECT * FROM kbo_queue")}
    with pipeline.instance() as instance:
        records = instance.get_run_records()
        assert len(records) == len(rows) > 20
        for record in records:
            run, row = record.dagster_run, rows[record.dagster_run.run_id]
            assert list(row) == list(COLUMNS)
            assert row["payload"] == expected_payload(run)
            assert run.status.value in STATUSES[row["status"]]
            assert row["retry_count"] == int(run.tags.get("dagster/retry_number", 0))
            assert row["error_message"] == expected_error(instance, record)
            assert row["created_at"].timestamp() == seconds(record.create_timestamp)
            assert record.start_time == seconds(row["started_at"])
            assert record.end_time == seconds(row["completed_at"])
            extract = extract_of(run)
            assert row["extract"] == (None if extract and "not-ours" in extract else extract)
            if run.job_name != "__ASSET_JOB":
                assert row["job_type"] == run.job_name
    types = select(
        address(pipeline, "postgres"),
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_name = 'kbo_queue' ORDER BY ordinal_position",
    )
    assert {row["column_name"]: row["data_type"] for row in types} == COLUMNS


def test_runs_of_the_import_are_told_in_plain_words(pipeline: Pipeline) -> None:
    imported = select(
        address(pipeline),
        "SELECT job_type, status, extract, max_retries FROM kbo_queue"
        " WHERE completed_at IS NOT NULL AND max_retries = 0 ORDER BY created_at",
    )
    assert [tuple(row.values()) for row in imported] == [
        ("stage_extract", "completed", "0140-full", 0),
        ("apply_batches", "completed", "0140-full", 0),
        ("publish_extract", "completed", "0140-full", 0),
        ("stage_extract", "failed", "0141-update", 0),
    ]
    failed = select(
        address(pipeline), "SELECT error_message FROM kbo_queue WHERE status = 'failed'"
    )
    messages = {row["error_message"] for row in failed}
    assert any(
        "activity_delete.csv: line 1 (byte 0): the header must name" in text for text in messages
    )
    assert {
        "ValueError:   the cause",
        "ValueError: a \ufffd in it",
        "stopped by Ctrl-C or SIGTERM",
        "the process of this run died",
    } <= messages


def test_runs_of_the_ui_are_called_after_the_job_with_their_assets(pipeline: Pipeline) -> None:
    rows = select(
        address(pipeline),
        "SELECT job_type, extract, max_retries FROM kbo_queue"
        " WHERE id IN (SELECT id FROM kbo_queue WHERE job_type <> 'stage_extract'"
        " OR payload ? 'asset_selection') AND status = 'pending' ORDER BY created_at",
    )
    assert [tuple(row.values()) for row in rows] == [
        ("apply_batches", "0141-update", 3),
        ("apply_batches", "0141-update", 3),
        ("stage_extract", None, 3),
        ("publish_extract", None, 3),
        ("materialize", None, 3),
        ("materialize", None, 3),
        ("publish_extract", None, 5),
        ("publish_extract", None, 3),
    ]


@pytest.mark.parametrize("job", [jobs.stage_extract, jobs.apply_batches, jobs.publish_extract])
def test_the_assets_of_the_jobs_are_those_of_the_definitions(job: Any) -> None:
    from kbo_pipeline.definitions import defs

    assets = defs.resolve_job_def(job.name).asset_layer.executable_asset_keys
    assert sorted(key.to_user_string() for key in assets) == sorted(
        progress.ASSETS_OF_JOBS[job.name]
    )


def test_a_row_that_is_no_json_spoils_only_itself(pipeline: Pipeline) -> None:
    with pipeline.instance() as instance:
        failed = add_run(instance, "apply_batches", dg.DagsterRunStatus.FAILURE, {}).run_id
    owner = address(pipeline, "postgres")
    execute(
        owner,
        f"UPDATE runs SET run_body = '{{' WHERE run_id = '{failed}'",
        "INSERT INTO event_logs (run_id, event, dagster_event_type)"
        f" VALUES ('{failed}', '{{\"a\": NaN', 'STEP_FAILURE')",
    )
    try:
        rows = {r["id"]: r for r in select(address(pipeline), "SELECT * FROM kbo_queue")}
        assert len(rows) > 20
        assert rows[failed]["payload"] == {}
        assert rows[failed]["error_message"] == "failed without a message"
    finally:
        execute(
            owner,
            f"DELETE FROM event_logs WHERE run_id = '{failed}'",
            f"DELETE FROM runs WHERE run_id = '{failed}'",
        )


def test_the_reader_reads_the_view_and_nothing_else(pipeline: Pipeline) -> None:
    owner, reader = address(pipeline, "postgres"), address(pipeline)
    tables = select(
        owner,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'p', 'S', 'm', 'v', 'f') AND relname <> 'kbo_queue'",
    )
    assert {"runs", "run_tags", "event_logs", "kvs"} < {row["relname"] for row in tables}
    forbidden: list[str | sql.Composable] = [
        *(sql.SQL("SELECT * FROM {}").format(sql.Identifier(row["relname"])) for row in tables),
        "INSERT INTO kbo_queue (id) VALUES ('x')",
        "UPDATE kbo_queue SET id = 'x'",
        "DELETE FROM kbo_queue",
        "TRUNCATE runs",
        "CREATE TABLE t (id int)",
        "CREATE TEMP TABLE t (id int)",
        "CREATE SCHEMA s",
        "SELECT lo_create(0)",
        "SELECT pg_read_file('PG_VERSION')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SET ROLE postgres",
    ]
    with closing(psycopg2.connect(reader)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SHOW transaction_read_only")
        assert cursor.fetchone() == ("on",)
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("1min",)
        # Anybody may unset it: what counts is what the role was granted.
        cursor.execute("SET default_transaction_read_only = off")
        for statement in forbidden:
            # A view of this shape refuses INSERT, UPDATE and DELETE to anybody.
            refusals = (errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState)
            with pytest.raises(refusals):
                cursor.execute(statement)
        cursor.execute("SELECT count(*) FROM kbo_queue")


def test_a_later_process_does_not_make_it_again(pipeline: Pipeline) -> None:
    before = made(pipeline)
    assert len(before) == 1
    pipeline.run("-c", START)
    assert made(pipeline) == before


def test_another_definition_is_replaced_and_keeps_what_was_granted(pipeline: Pipeline) -> None:
    owner = address(pipeline, "postgres")
    before = made(pipeline)
    execute(
        owner,
        "CREATE ROLE colleague LOGIN",
        "GRANT SELECT ON kbo_queue TO colleague",
        "COMMENT ON VIEW kbo_queue IS 'older'",
    )
    with pipeline.instance():
        pass
    (again,) = made(pipeline)
    assert again["obj_description"] == before[0]["obj_description"]
    assert again["oid"] == before[0]["oid"]
    assert select(address(pipeline, "colleague"), "SELECT count(*) FROM kbo_queue")


def test_a_view_with_other_columns_is_made_anew(pipeline: Pipeline) -> None:
    execute(
        address(pipeline, "postgres"),
        "DROP VIEW kbo_queue",
        "CREATE VIEW kbo_queue AS SELECT 1 AS id, run_id FROM runs",
    )
    with pipeline.instance():
        pass
    assert len(select(address(pipeline), "SELECT * FROM kbo_queue")) > 20


def test_a_migration_of_dagster_may_alter_what_the_view_reads(pipeline: Pipeline) -> None:
    alter = "ALTER TABLE runs ALTER COLUMN status TYPE varchar(64)"
    with pytest.raises(errors.FeatureNotSupported, match="used by a view"):
        execute(address(pipeline, "postgres"), alter)
    with pipeline.instance() as instance:
        instance.upgrade()  # what `dagster instance migrate` does
    assert made(pipeline) == []
    execute(address(pipeline, "postgres"), alter)
    with pipeline.instance():
        pass
    assert len(select(address(pipeline), "SELECT * FROM kbo_queue")) > 20


def test_tables_of_an_older_dagster_are_migrated_once(pipeline: Pipeline) -> None:
    execute(
        address(pipeline, "postgres"),
        "ALTER TABLE concurrency_limits DROP COLUMN using_default_limit",
        "UPDATE alembic_version SET version_num = '6b7fb194ff9c'",  # the one before that column
    )
    said: list[str] = []
    for _ in range(2):
        with pipeline.instance() as instance:
            storage.migrate(instance, said.append)
            assert instance.event_log_storage.get_pool_limits() is not None
    assert said == ["Dagster's tables in PostgreSQL are of an older version: migrating them"]
    found = "SELECT count(using_default_limit) FROM concurrency_limits"
    assert select(address(pipeline, "postgres"), found)
    assert len(select(address(pipeline), "SELECT * FROM kbo_queue")) > 20


def test_a_reader_who_locks_the_view_keeps_nobody_from_starting(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    owner = address(pipeline, "postgres")
    execute(owner, "COMMENT ON VIEW kbo_queue IS 'older'")
    with closing(psycopg2.connect(address(pipeline))) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM kbo_queue")
        for _ in range(2):
            with pipeline.instance() as instance:
                assert instance.get_runs_count() > 20
    assert len(caplog.messages) == 1
    assert "the view kbo_queue is not made: canceling statement due to lock" in caplog.text
    queue_view._not_made.clear()
    with pipeline.instance():
        pass
    assert made(pipeline)[0]["obj_description"] != "older"


def test_four_processes_at_a_new_database_make_it_once(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    with embedded(tmp_path / "postgres") as server:
        done = pipeline.run("-c", START_FOUR)
        assert (done.stdout, done.stderr) == ("0\n" * 4, "")
        assert len(made(pipeline)) == 1
        assert select(address(pipeline), "SELECT * FROM kbo_queue") == []
        leave(server)


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with password_server(tmp_path_factory.mktemp("own") / "server") as url:
        yield url


def login(own_server: str, name: str, *statements: str) -> str:
    """Makes a login without special rights and a database; returns the login's URL for it."""
    execute(own_server, f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'", f"CREATE DATABASE {name}")
    at_database = own_server.removesuffix("/postgres") + f"/{name}"
    execute(at_database, *statements)
    where = urlsplit(at_database).netloc.rpartition("@")[2]
    return f"postgresql://{name}:{quote(SECRET)}@{where}/{name}"


def opened(url: str, monkeypatch: pytest.MonkeyPatch) -> storage.KboPostgresStorage:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    return storage.KboPostgresStorage.from_config_value(None, {})


def close(url: str) -> None:
    storage._engine(sqlalchemy_url(url), None).dispose()


def test_a_login_that_may_not_create_roles_makes_the_view(
    own_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = login(
        own_server,
        "plain",
        "GRANT CREATE ON SCHEMA public TO plain",
        "ALTER ROLE plain SET timezone = 'Europe/Brussels'",
    )
    for _ in range(2):
        storage_at_work = opened(url, monkeypatch)
    run = dg.DagsterRun(job_name="apply_batches")
    storage_at_work.run_storage.add_run(run)
    (record,) = storage_at_work.run_storage.get_run_records()
    (row,) = select(url, "SELECT *, now() FROM kbo_queue")
    assert row["created_at"] == record.create_timestamp
    assert abs((row["now"] - row["created_at"]).total_seconds()) < 60
    close(url)
    (warning,) = caplog.messages
    assert "permission denied to create role" in warning
    assert "GRANT SELECT ON kbo_queue TO kbo_reader" in warning
    assert SECRET not in warning
    # What everybody may do in a database that is not ours stays as it is.
    (public,) = select(url, "SELECT has_database_privilege('public', 'plain', 'TEMPORARY') AS may")
    assert public == {"may": True}


def test_a_login_that_may_not_create_views_runs_dagster(
    own_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = login(own_server, "weak")
    at_database = own_server.removesuffix("/postgres") + "/weak"
    opened(at_database, monkeypatch)
    close(at_database)
    execute(
        at_database,
        "DROP VIEW kbo_queue",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO weak",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO weak",
    )
    assert caplog.messages == []
    for _ in range(2):
        storage_at_work = opened(url, monkeypatch)
    storage_at_work.run_storage.add_run(dg.DagsterRun(job_name="apply_batches"))
    assert storage_at_work.run_storage.get_runs_count() == 1
    close(url)
    (warning,) = caplog.messages
    assert "kbo_queue is not made: permission denied for schema public" in warning
    assert "GRANT CREATE ON SCHEMA public TO weak" in warning


def test_a_role_that_is_there_already_gets_its_rights(
    own_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened(own_server, monkeypatch)
    close(own_server)
    assert caplog.messages == []
    (found,) = select(
        own_server,
        "SELECT has_table_privilege('kbo_reader', 'kbo_queue', 'SELECT') AS view,"
        " has_table_privilege('kbo_reader', 'runs', 'SELECT') AS runs",
    )
    assert found == {"view": True, "runs": False}
