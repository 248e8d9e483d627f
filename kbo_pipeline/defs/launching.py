"""The module that a `dagster.yaml` of before names; kept for one release."""

from kbo_pipeline.operate.processes.launcher import KboRunLauncher as KboRunLauncher
