"""The jobs: one for each verb that a person or a sensor starts."""

import dagster as dg

from kbo_pipeline.defs.staging import staging_asset
from kbo_pipeline.tables import ALL_TABLES, CODE, TABLES

stage_extract = dg.define_asset_job(
    "stage_extract",
    selection=["extract_zip", *(staging_asset(table) for table in ALL_TABLES)],
    description="Takes one extract's ZIP and loads it into its staging file.",
)

apply_batches = dg.define_asset_job(
    "apply_batches",
    selection=[table.name for table in TABLES],
    description="Applies batches of a staged extract to the register.",
)

publish_extract = dg.define_asset_job(
    "publish_extract",
    selection=[CODE.name, "published_extract"],
    description="Shows an extract, whose batches are all applied, to readers.",
)
