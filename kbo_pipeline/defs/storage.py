"""The module that a `dagster.yaml` of before names; kept for one release."""

from kbo_pipeline.operate.processes.storage import KboPostgresStorage as KboPostgresStorage
