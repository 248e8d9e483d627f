"""What `/kbo/metrics` says, in the text format of OpenMetrics."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from datetime import time as time_of_day

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics import exposition
from starlette.types import Scope

from kbo_pipeline.read.web.served import Opened

MEDIA_TYPE = exposition.CONTENT_TYPE_LATEST

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Requests:
    """Counts the requests of this process, and how long their answers took."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._count = Counter(
            "kbo_http_requests",
            "Requests answered by this process.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "kbo_http_request_seconds",
            "Seconds until the answer was sent.",
            ("route",),
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts a request that was answered; addresses that are no route are one."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._count.labels(route, method, str(int(status))).inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """All of it, as prometheus-client has it."""
        return self._registry.collect()


_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")

Collect = Callable[[], Iterable[Metric]]
"""Gives metrics when they are asked for."""


def of_register(opened: Opened | None) -> Iterator[Metric]:
    """What is published, how old it is, and when it was proven; None where nothing can be read."""
    yield GaugeMetricFamily(
        "kbo_register_readable",
        "Whether there is a published register to read.",
        value=opened is not None,
    )
    if opened is None:
        return
    newest = opened.register.extracts[0]
    yield GaugeMetricFamily(
        "kbo_extract_number", "The newest published extract.", value=newest.number
    )
    end_of_day = datetime.combine(newest.snapshot_date, time_of_day.max, UTC)
    yield GaugeMetricFamily(
        "kbo_extract_age_seconds",
        "Since the end of the day of which the data is.",
        unit="seconds",
        value=max(0.0, time.time() - end_of_day.timestamp()),
    )
    number, moment = (
        opened.publication.proven_extract_number,
        opened.publication.proven_at,
    )
    if number is not None and moment is not None:
        yield GaugeMetricFamily(
            "kbo_proof_extract_number", "The number last found equal to KBO's Full.", value=number
        )
        yield GaugeMetricFamily(
            "kbo_proof_timestamp_seconds",
            "When that was found.",
            unit="seconds",
            value=moment.timestamp(),
        )


def written(metrics: Iterable[Metric]) -> bytes:
    """Metrics in the text format of OpenMetrics."""
    written: Callable[[_Gathered], bytes] = exposition.generate_latest
    return written(_Gathered(tuple(metrics)))


@dataclass(frozen=True, slots=True)
class _Gathered:
    """As much of a registry of prometheus-client as is written."""

    metrics: tuple[Metric, ...]

    def collect(self) -> tuple[Metric, ...]:
        return self.metrics
