"""The jobs: one for each verb that a person or a sensor starts."""

import dagster as dg

from kbo_pipeline.core.tables import ALL_TABLES, CODE, TABLES
from kbo_pipeline.operate.runs.partitions import staging_asset
from kbo_pipeline.operate.runs.progress import ACCEPT_LOSS_TAG, PUBLISHED, REPORTED

stage_extract = dg.define_asset_job(
    "stage_extract",
    selection=["extract_zip", *(staging_asset(table) for table in ALL_TABLES)],
    description="Takes one extract's ZIP and loads it into its staging file.",
)

apply_batches = dg.define_asset_job(
    "apply_batches",
    selection=dg.AssetSelection.assets(*(table.name for table in TABLES)).without_checks(),
    description="Applies batches of a staged extract to the register.",
)

publish_extract = dg.define_asset_job(
    "publish_extract",
    # Publishing checks what it publishes; the checks by themselves look at what is published.
    selection=dg.AssetSelection.assets(CODE.name, PUBLISHED, REPORTED).without_checks(),
    description="Shows an extract, whose batches are all applied, to readers, and makes the report"
    " on what it changed. The tag"
    f" `{ACCEPT_LOSS_TAG}`, with your name, publishes an Update that takes away many rows.",
)

export_parquet = dg.define_asset_job(
    "export_parquet",
    selection=["parquet_export"],
    description="Writes the current tables as Parquet; of the newest published extract only.",
)

verify_full = dg.define_asset_job(
    "verify_full",
    selection=["full_verification"],
    description="Compares the register, as it was at an extract, with the Full of its number, which"
    " has to lie in the downloads directory.",
)
