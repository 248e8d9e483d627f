"""What `/kbo/metrics` says of imports, beside what it says of the register."""

from collections.abc import Iterator

import dagster as dg
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.processes.storage import POSTGRES_ERRORS
from kbo_pipeline.operate.runs.live import past_imports
from kbo_pipeline.operate.runs.status import newest_extract, read_status


def of_imports(instance: dg.DagsterInstance, settings: Settings) -> list[Metric]:
    """Batches of the extract at work, and the seconds of the last one; less without PostgreSQL."""
    try:
        metrics = [*_batches(instance, settings), *_stages(instance)]
    except POSTGRES_ERRORS:
        metrics = []
    readable = GaugeMetricFamily(
        "kbo_imports_readable", "Whether Dagster's storage answers.", value=bool(metrics)
    )
    return [readable, *metrics]


def _batches(instance: dg.DagsterInstance, settings: Settings) -> Iterator[Metric]:
    waiting = failed = 0
    try:
        status = read_status(instance, settings, newest_extract(instance))
    except NotReadyError:  # nothing was ever imported
        pass
    else:
        done = min((table.completed for table in status.tables.values()), default=0)
        failed = len({place.batch for place in status.failed_batches})
        waiting = status.batches - done - failed
    family = GaugeMetricFamily(
        "kbo_batches", "Batches of the extract at work that are not applied.", labels=("state",)
    )
    family.add_metric(["waiting"], waiting)
    family.add_metric(["failed"], failed)
    yield family


def _stages(instance: dg.DagsterInstance) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "kbo_stage_seconds",
        "Seconds that each stage of the newest published extract took.",
        labels=("stage",),
        unit="seconds",
    )
    for past in past_imports(instance, 1):
        for stage, seconds in past.stages.items():
            family.add_metric([stage], seconds)
    yield family
