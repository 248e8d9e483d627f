"""The view `kbo_queue` on Dagster's tables, and the role `kbo_reader` that may read it.

All SQL on them lives here; when it is run is the storage's business. The view names the columns of
Dagster 1.13. Nothing in this project reads it: it is for people who look into PostgreSQL.
"""

import functools
import hashlib
import json
import logging

import yaml
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from kbo_pipeline.core.text import first_line
from kbo_pipeline.operate.instance import INSTANCE_FILE
from kbo_pipeline.operate.runs.progress import ASSETS_OF_JOBS

VIEW = "kbo_queue"
"""One row for each run of Dagster."""

READER = "kbo_reader"
"""May read the view and nothing else."""


_OTHER_COLUMNS = "42P16"  # PostgreSQL's code for a view that may not be replaced by this one

# A row that is no JSON must not spoil the view, and PostgreSQL 15 cannot ask beforehand. JSON may
# hold the character NUL, which jsonb refuses.
_JSON_FUNCTION = r"""
CREATE OR REPLACE FUNCTION kbo_queue_json(body text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    RETURN replace(body, '\u0000', '\ufffd')::jsonb;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$
"""

# Columns are subqueries rather than joins, so that PostgreSQL computes only those that are asked
# for, and with ORDER BY and LIMIT only for the rows that are left.
#
# Dagster stores the asset selection as {"__set__": [...]} or {"__frozenset__": [...]}.
#
# `dagster_event_type || ''` keeps PostgreSQL from the index on event types, which holds the
# failures of all runs; a run has some hundred events.
_VIEW = r"""
CREATE OR REPLACE VIEW kbo_queue AS
SELECT
    r.run_id::text AS id,
    CASE WHEN r.pipeline_name <> '__ASSET_JOB' THEN r.pipeline_name ELSE (
        SELECT CASE
            WHEN assets.names <@ CAST(:stage_extract AS jsonb) THEN 'stage_extract'
            WHEN assets.names <@ CAST(:apply_batches AS jsonb) THEN 'apply_batches'
            WHEN assets.names <@ CAST(:publish_extract AS jsonb) THEN 'publish_extract'
            ELSE 'materialize'
        END
        FROM (
            SELECT jsonb_agg(btrim(replace((asset -> 'path')::text, '", "', '/'), '[]"')) AS names
            FROM jsonb_path_query(kbo_queue_json(r.run_body), '$.asset_selection.*[*]') AS asset
        ) AS assets
    ) END AS job_type,
    (
        SELECT CASE WHEN t.partition IS NULL THEN '{}'
                ELSE jsonb_build_object('partition', t.partition) END
            || CASE WHEN t.range_start IS NULL THEN '{}'
                ELSE jsonb_build_object('partition_range',
                    jsonb_build_object('start', t.range_start, 'end', t.range_end)) END
            || CASE WHEN run.body -> 'run_config' IS NULL THEN '{}'
                ELSE jsonb_build_object('run_config', run.body -> 'run_config') END
            || CASE WHEN assets.names IS NULL THEN '{}'
                ELSE jsonb_build_object('asset_selection', assets.names) END
        FROM (SELECT kbo_queue_json(r.run_body) AS body OFFSET 0) AS run
        CROSS JOIN LATERAL (
            SELECT jsonb_agg(name ORDER BY name) AS names
            FROM jsonb_path_query(run.body, '$.asset_selection.*[*]') AS asset
            CROSS JOIN LATERAL btrim(replace((asset -> 'path')::text, '", "', '/'), '[]"') AS name
        ) AS assets
    ) AS payload,
    CASE
        WHEN r.status IN ('NOT_STARTED', 'QUEUED', 'MANAGED') THEN 'pending'
        WHEN r.status = 'SUCCESS' THEN 'completed'
        WHEN r.status IN ('FAILURE', 'CANCELED') THEN 'failed'
        ELSE 'processing'
    END AS status,
    CASE WHEN t.retry_number ~ '^[0-9]{1,9}$' THEN t.retry_number::int ELSE 0 END AS retry_count,
    CASE WHEN t.max_retries ~ '^[0-9]{1,9}$' THEN t.max_retries::int
        ELSE CAST(:max_retries AS int) END AS max_retries,
    CASE WHEN r.status IN ('FAILURE', 'CANCELED') THEN coalesce(
        (
            SELECT coalesce(
                split_part(
                    nullif(failure.data #>> '{user_failure_data,description}', ''), E'\n', 1),
                (
                    WITH RECURSIVE causes AS (
                        SELECT failure.data -> 'error' AS error, 0 AS depth
                        UNION ALL
                        SELECT error -> 'cause', depth + 1
                        FROM causes
                        WHERE jsonb_typeof(error -> 'cause') = 'object'
                    )
                    SELECT split_part(btrim(error ->> 'message', E' \t\n\r\f\x0b'), E'\n', 1)
                    FROM causes
                    ORDER BY depth DESC
                    LIMIT 1
                )
            )
            FROM (
                SELECT kbo_queue_json(l.event) #> '{dagster_event,event_specific_data}' AS data
                FROM event_logs AS l
                WHERE r.status = 'FAILURE'
                    AND l.run_id = r.run_id
                    AND l.dagster_event_type || '' = 'STEP_FAILURE'
                ORDER BY l.id DESC
                LIMIT 1
            ) AS failure
        ),
        (
            SELECT split_part(
                btrim(kbo_queue_json(l.event) #>> '{dagster_event,message}', E' \t\n\r\f\x0b'),
                E'\n', 1)
            FROM event_logs AS l
            WHERE l.run_id = r.run_id AND l.dagster_event_type || '' = 'PIPELINE_' || r.status
            ORDER BY l.id DESC
            LIMIT 1
        ),
        CASE r.status WHEN 'CANCELED' THEN 'canceled' ELSE 'failed' END || ' without a message'
    ) END AS error_message,
    r.create_timestamp AT TIME ZONE 'UTC' AS created_at,
    to_timestamp(r.start_time) AS started_at,
    to_timestamp(r.end_time) AS completed_at,
    coalesce(
        t.extract,
        substring(t.partition FROM '^\d{4,}-(?\:full|update)(?=$|-\d{4,}$)'),
        substring(t.range_start FROM '^\d{4,}-(?\:full|update)(?=$|-\d{4,}$)')
    ) AS extract
FROM runs AS r
LEFT JOIN (
    SELECT run_id,
        max(value) FILTER (WHERE key = 'kbo/extract') AS extract,
        max(value) FILTER (WHERE key = 'dagster/partition') AS partition,
        max(value) FILTER (WHERE key = 'dagster/asset_partition_range_start') AS range_start,
        max(value) FILTER (WHERE key = 'dagster/asset_partition_range_end') AS range_end,
        max(value) FILTER (WHERE key = 'dagster/retry_number') AS retry_number,
        max(value) FILTER (WHERE key = 'dagster/max_retries') AS max_retries
    FROM run_tags
    WHERE key IN (
        'kbo/extract', 'dagster/partition', 'dagster/asset_partition_range_start',
        'dagster/asset_partition_range_end', 'dagster/retry_number', 'dagster/max_retries')
    GROUP BY run_id
) AS t ON t.run_id = r.run_id
"""

# The role belongs to the whole server: another database's process may create it at this moment.
_ROLE = """
DO $$
BEGIN
    IF to_regrole('kbo_reader') IS NULL THEN
        BEGIN
            CREATE ROLE kbo_reader LOGIN CONNECTION LIMIT 10;
            ALTER ROLE kbo_reader SET default_transaction_read_only = on;
            ALTER ROLE kbo_reader SET statement_timeout = '60s';
            ALTER ROLE kbo_reader SET jit = off;  -- compiling takes longer than the view
            ALTER ROLE kbo_reader SET idle_in_transaction_session_timeout = '60s';
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    GRANT SELECT ON kbo_queue TO kbo_reader;
    IF NOT has_schema_privilege('kbo_reader', current_schema(), 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO kbo_reader', current_schema());
    END IF;
    IF NOT has_database_privilege('kbo_reader', current_database(), 'CONNECT') THEN
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO kbo_reader', current_database());
    END IF;
END
$$
"""

_EMBEDDED_ONLY = """
DO $$
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea)
        FROM PUBLIC;
    REVOKE CONNECT, TEMPORARY ON DATABASE template1 FROM PUBLIC;
END
$$
"""

_logger = logging.getLogger("kbo_pipeline")
_not_made: set[URL] = set()


def ensure_queue(connection: Connection, *, embedded: bool) -> None:
    """Makes the view and the role, unless the view is there as this version defines it.

    Where the login may not, each process logs one line, and Dagster works without. No other process
    may do the same during the connection's transaction. An embedded server is our own, so that
    rights of everybody there are taken away.
    """
    url = connection.engine.url
    comment = f"The runs of Dagster as a queue. Definition {_fingerprint()} of kbo_pipeline."
    there = connection.execute(text("SELECT obj_description(to_regclass('kbo_queue'), 'pg_class')"))
    if there.scalar() == comment or url in _not_made:
        return
    try:
        with connection.begin_nested():
            # A reader in the middle of something must not keep every process from starting.
            connection.execute(text("SET LOCAL lock_timeout = '2s'"))
            connection.execute(text(_JSON_FUNCTION))
            _make_view(connection)
            connection.execute(text("COMMENT ON VIEW kbo_queue IS :comment"), {"comment": comment})
    except DBAPIError as error:
        _not_made.add(url)
        _logger.warning(
            "the view %s is not made: %s; nothing else needs it, and the next start tries again."
            " Where a right is missing, ask the administrator of database %s to GRANT CREATE ON"
            " SCHEMA public TO %s",
            *(VIEW, _reason(error), url.database, url.username),
        )
        return
    try:
        with connection.begin_nested():
            connection.execute(text(_ROLE))
            if embedded:
                connection.execute(text(_EMBEDDED_ONLY))
    except DBAPIError as error:
        _logger.warning(
            "the role %s is not made: %s. Ask the administrator of database %s to CREATE ROLE %s"
            " LOGIN, and to GRANT SELECT ON %s TO %s",
            *(READER, _reason(error), url.database, READER, VIEW, READER),
        )


def drop_queue(connection: Connection) -> None:
    """Removes the view, which keeps PostgreSQL from altering the columns that it reads."""
    connection.execute(text("DROP VIEW IF EXISTS kbo_queue"))


def _make_view(connection: Connection) -> None:
    """Replaces the view, which keeps what was granted on it; drops one with other columns."""
    assets = {job: json.dumps(names) for job, names in ASSETS_OF_JOBS.items()}
    instance = yaml.safe_load(INSTANCE_FILE.read_text())
    values = {**assets, "max_retries": instance["run_retries"]["max_retries"]}
    try:
        with connection.begin_nested():
            connection.execute(text(_VIEW), values)
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != _OTHER_COLUMNS:
            raise
        drop_queue(connection)
        connection.execute(text(_VIEW), values)


@functools.cache
def _fingerprint() -> str:
    """Differs when anything does that the view, the function or the role is made of."""
    parts = (_JSON_FUNCTION, _VIEW, json.dumps(ASSETS_OF_JOBS), _ROLE, _EMBEDDED_ONLY)
    digest = hashlib.sha256("".join(parts).encode() + INSTANCE_FILE.read_bytes())
    return digest.hexdigest()[:16]


def _reason(error: DBAPIError) -> str:
    return first_line(error.orig)
