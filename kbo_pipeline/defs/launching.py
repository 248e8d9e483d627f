"""The name of the launcher in a `dagster.yaml` of before; kept for one release."""

from kbo_pipeline.operate.runs.recovery import KboRunLauncher as KboRunLauncher
