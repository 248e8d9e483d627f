"""Wiring: the code location that Dagster loads."""

import dagster as dg

from kbo_pipeline.defs.assets.published import (
    change_report,
    check_published_register,
    full_verification,
    parquet_export,
    publish_assets,
    search_index,
)
from kbo_pipeline.defs.assets.register import apply_to_register
from kbo_pipeline.defs.assets.staging import extract_zip, import_staging
from kbo_pipeline.defs.jobs import (
    apply_batches,
    build_search_index,
    compact_lake,
    compact_weekly,
    export_parquet,
    publish_extract,
    rollback_extract,
    stage_extract,
    verify_full,
)
from kbo_pipeline.defs.sensors.due import (
    apply_when_staged,
    export_when_published,
    index_when_published,
    kbo_extract_sensor,
    proof_sensor,
    publish_when_applied,
    verify_when_at_hand,
)
from kbo_pipeline.defs.sensors.inbox import inbox_sensor
from kbo_pipeline.defs.sensors.upkeep import alert_sensor, retention_sensor
from kbo_pipeline.defs.step import AT_IMPORT, duckdb_resource

defs = dg.Definitions(
    assets=[
        extract_zip,
        import_staging,
        apply_to_register,
        publish_assets,
        change_report,
        parquet_export,
        search_index,
        full_verification,
    ],
    asset_checks=[check_published_register],
    jobs=[
        stage_extract,
        apply_batches,
        publish_extract,
        rollback_extract,
        export_parquet,
        build_search_index,
        verify_full,
        *([compact_lake] if AT_IMPORT.database.is_compacted else []),
    ],
    schedules=[compact_weekly] if AT_IMPORT.database.is_compacted else [],
    sensors=[
        kbo_extract_sensor,
        inbox_sensor,
        apply_when_staged,
        publish_when_applied,
        alert_sensor,
        retention_sensor,
        export_when_published,
        index_when_published,
        proof_sensor,
        verify_when_at_hand,
    ],
    resources={"duckdb": duckdb_resource(AT_IMPORT)},
    executor=dg.in_process_executor,  # the default one starts a second Python for each step
)
