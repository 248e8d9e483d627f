"""The name of the storage in a `dagster.yaml` of before; kept for one release."""

from kbo_pipeline.operate.processes.storage import KboPostgresStorage as KboPostgresStorage
