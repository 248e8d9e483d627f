"""SQL of the change report; the published register is the default database.

The changes of one extract are put into the temporary table `report_changes` first.
"""

from kbo_pipeline.core.tables import ENTERPRISE
from kbo_pipeline.read.changes_sql import CHANGED_ENTITIES
from kbo_pipeline.read.kinds import NEW, STOPPED

CREATE_CHANGES = f"CREATE OR REPLACE TEMP TABLE report_changes AS {CHANGED_ENTITIES}"
"""Finds what an extract changed; binds `$number`."""

DROP_CHANGES = "DROP TABLE IF EXISTS temp.report_changes"

HISTORY = """
WITH newest AS (
    SELECT id, extract_number, extract_type, snapshot_date FROM import_jobs
    WHERE status = 'completed' AND extract_number <= $number
    ORDER BY extract_number DESC LIMIT $extracts
)
SELECT n.extract_number, n.extract_type, n.snapshot_date, b.table_name,
    coalesce(sum(b.rows_closed), 0)::BIGINT, coalesce(sum(b.rows_opened), 0)::BIGINT
FROM newest n LEFT JOIN import_job_batches b ON b.job_id = n.id
GROUP BY ALL ORDER BY n.extract_number
"""
"""Rows that the newest extracts closed and opened, by table; binds `$number`, `$extracts`."""

FIRST_EXTRACT = "SELECT min(extract_number) FROM import_jobs WHERE status = 'completed'"

COUNT_BY_KIND = "SELECT table_name, kind, count(*) FROM report_changes GROUP BY ALL"

COUNT_IN_FILES = """
SELECT filename, table_name, kind, count(*)
FROM read_parquet($files, filename = true) GROUP BY ALL
"""
"""Counts the changes that earlier reports list; binds `$files`."""

REJECTED_ROWS = """
SELECT file, line, column_name, reason FROM rejected_row
WHERE extract = $key ORDER BY file, line LIMIT $most
"""
"""Where the first records of an extract stood that are set aside; binds `$key`, `$most`."""

COUNT_REJECTED = "SELECT count(*) FROM rejected_row WHERE extract = $key"

COUNT_ENTITIES = "SELECT count(DISTINCT entity_number) FROM report_changes"

EXAMPLES = """
SELECT table_name, kind, entity_number, enterprise_number, name, before, after
FROM report_changes WHERE rowid IN (
    SELECT unnest(min_by(rowid, entity_number, $most)) FROM report_changes
    GROUP BY table_name, kind)
ORDER BY rowid
"""
"""Some changes of each kind; binds `$most`."""

_WHAT = "table_name || ' ' || kind"
_OF_ENTERPRISES = f"""
SELECT {ENTERPRISE.key},
    coalesce(max(name) FILTER (entity_number = {ENTERPRISE.key}), {ENTERPRISE.key}),
    count(DISTINCT {_WHAT}) AS kinds, count(DISTINCT entity_number) AS entities,
    string_agg(DISTINCT {_WHAT}, ', ' ORDER BY {_WHAT})
FROM report_changes WHERE {ENTERPRISE.key} IS NOT NULL
"""

MOST_KINDS = f"""
{_OF_ENTERPRISES} AND kind NOT IN ('{NEW}', '{STOPPED}')
GROUP BY {ENTERPRISE.key} HAVING kinds >= $least
ORDER BY kinds DESC, entities DESC, {ENTERPRISE.key} LIMIT $most
"""
"""The enterprises that changed in the most ways at once, beginnings and ends aside."""

MOST_ENTITIES = f"""
{_OF_ENTERPRISES}
GROUP BY {ENTERPRISE.key} HAVING entities >= $least
ORDER BY entities DESC, kinds DESC, {ENTERPRISE.key} LIMIT $most
"""
"""The enterprises of which the most changed: themselves, establishment units and branches."""
