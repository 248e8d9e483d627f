"""What the page `/kbo` shows, read in one place: `read_page` makes it, the template renders it."""

import datetime
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any
from urllib.parse import quote

import dagster as dg
import jinja2

from kbo_pipeline.core.errors import NotReadyError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.tables import TABLES
from kbo_pipeline.core.text import clock, cut, duration, sanitize
from kbo_pipeline.operate import markers
from kbo_pipeline.operate.markers import Poll, read_alerts, read_poll
from kbo_pipeline.operate.runs.live import PastImport, past_imports, read_live
from kbo_pipeline.operate.runs.progress import (
    Progress,
    extract_of,
    import_runs,
    is_cancelled,
    is_rollback,
    job_of,
)
from kbo_pipeline.operate.runs.status import (
    ExtractStatus,
    newest_extract,
    read_status,
    step_failure,
)
from kbo_pipeline.read.published import Proof, read_proofs

_MOST_QUEUED = 40
_MOST_RUNS = 5  # failed ones whose reasons are read
_LONGEST = 500  # characters of a text that somebody else has written
_HISTORY_SECONDS = 60.0

_JOBS = {
    "stage_extract": "staging",
    "apply_batches": "applying",
    "publish_extract": "publishing",
    "rollback_extract": "rolling back",
}


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """A batch whose last attempt failed.

    Attributes:
        key: the batch.
        table: where it failed; any of its tables where the reason names none.
        reason: why.
    """

    key: str
    table: str
    reason: str


@dataclass(frozen=True, slots=True)
class Queued:
    """An extract that comes after the one at work.

    Attributes:
        key: the extract.
        words: what it waits for, or what is done with it.
        run_id: its newest run; None when there is none.
    """

    key: str
    words: str
    run_id: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page shows.

    Attributes:
        status: the extract at work, or the newest one; None when there is none.
        failed: its batches that failed.
        queue: the extracts after it.
        past: the extracts that were published last, the newest first.
        failures: the runs of these that had failed before, the newest first, by their keys.
        proofs: how extracts compared with KBO's Fulls, by their keys.
        poll: what the portal said last; None when it never was asked.
        is_polled: whether an account for the portal is set.
        alerts: what stands, as the webhook gets it; no failure of what is at work again.
        is_paused: everything waits.
        stopped_at: when the import at work failed or was cancelled, in seconds of the epoch.
        inbox: where ZIPs may be put.
        has_buttons: whether something can be done here.
        why_no_buttons: what is said in their place.
        message: what came of a button; None when none was pressed.
        is_refused: whether that was a refusal.
        read_at: seconds of the epoch.
    """

    status: ExtractStatus | None
    failed: Sequence[FailedBatch]
    queue: Sequence[Queued]
    past: Sequence[PastImport]
    failures: Mapping[str, Sequence[str]]
    proofs: Mapping[str, Proof]
    poll: Poll | None
    is_polled: bool
    alerts: Sequence[Mapping[str, Any]]
    is_paused: bool
    stopped_at: float | None
    inbox: str
    has_buttons: bool
    why_no_buttons: str
    message: str | None
    is_refused: bool
    read_at: float

    @property
    def at_rest(self) -> str:
        """What is said when nothing is at work: up to date only where the portal has said so."""
        poll = self.poll
        is_sure = poll is not None and not (poll.is_failed or poll.is_refused or poll.gap)
        return "Up to date" if is_sure else "All published"

    @property
    def heading(self) -> str:
        """What the browser shows as the name of the page."""
        if self.is_paused:
            return "Paused"
        if self.status is None:
            return "Nothing imported"
        if self.status.stage != "done":
            return f"{self.status.percentage} % {self.status.job_id}"
        return self.at_rest

    @property
    def days_old(self) -> int | None:
        """Age of the data that readers have; None when the publication did not record its day."""
        day = self.past[0].snapshot_date if self.past else None
        return None if day is None else (datetime.date.fromtimestamp(self.read_at) - day).days


class Reader:
    """Reads the page, and keeps what does not change: refreshing it each second must cost little.

    Used by many threads.
    """

    def __init__(self, instance: dg.DagsterInstance, settings: Settings) -> None:
        """Reads nothing yet."""
        self._instance, self._settings = instance, settings
        self._lock = threading.Lock()
        self._past: list[PastImport] = []
        self._failures: Mapping[str, Sequence[str]] = {}
        self._past_of: tuple[int, int] = (-1, -1)
        self._past_at = 0.0
        self._reasons: dict[str, Mapping[str, str]] = {}  # by run

    def read(
        self,
        *,
        has_buttons: bool = True,
        why_no_buttons: str = "",
        message: str | None = None,
        is_refused: bool = False,
    ) -> Page:
        """The page as of now."""
        instance, settings = self._instance, self._settings
        progress = Progress(instance)
        status = None
        try:
            key = newest_extract(instance, progress)
            status = read_status(instance, settings, key, progress)
        except NotReadyError:  # nothing was ever imported
            pass
        past, failures = self._read_past(progress)
        return Page(
            status=status,
            failed=self._failed(status),
            queue=_queue(instance, progress, status),
            past=past,
            failures=failures,
            proofs=read_proofs(settings),
            poll=read_poll(instance),
            is_polled=settings.has_account,
            alerts=_alerts(instance, status, progress),
            is_paused=markers.is_paused(settings),
            stopped_at=_stopped_at(instance, status),
            inbox=str(settings.inbox_dir),
            has_buttons=has_buttons,
            why_no_buttons=why_no_buttons,
            message=message,
            is_refused=is_refused,
            read_at=time.time(),
        )

    def _read_past(
        self, progress: Progress
    ) -> tuple[list[PastImport], Mapping[str, Sequence[str]]]:
        newest = (len(progress.published), max(progress.published.values(), default=0))
        with self._lock:
            if self._past_of != newest or time.monotonic() - self._past_at > _HISTORY_SECONDS:
                self._past = past_imports(self._instance)
                self._failures = _failed_before(self._instance, self._past)
                self._past_of, self._past_at = newest, time.monotonic()
            return self._past, self._failures

    def _failed(self, status: ExtractStatus | None) -> list[FailedBatch]:
        """The failed batches with their reasons, those of the run at work included."""
        if status is None or status.stage == "done":
            return []
        key = status.extract
        live = read_live(self._settings, key) if status.operation is not None else None
        keys = {str(BatchKey(key, place.batch)) for place in status.failed_batches}
        reasons = dict(live.failed) if live is not None and live.run_id == status.run_id else {}
        missing = keys - reasons.keys()
        keys |= reasons.keys()
        if missing:
            failures = import_runs(self._instance, [key], [dg.DagsterRunStatus.FAILURE])
            for run in failures[:_MOST_RUNS]:
                for batch, reason in self._reasons_of(run).items():
                    reasons.setdefault(batch, reason)
        return [_failed_batch(batch, reasons.get(batch, "see its run")) for batch in sorted(keys)]

    def _reasons_of(self, run: dg.DagsterRun) -> Mapping[str, str]:
        """Why batches failed in a run that has ended."""
        with self._lock:
            if run.run_id in self._reasons:
                return self._reasons[run.run_id]
        event = step_failure(self._instance, run)
        failure = event.step_failure_data.user_failure_data if event is not None else None
        noted = failure.metadata.get("failed_batches") if failure is not None else None
        value = noted.value if noted is not None else None
        reasons = {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
        with self._lock:
            self._reasons[run.run_id] = reasons
        return reasons


def _failed_batch(key: str, reason: str) -> FailedBatch:
    words = reason.replace(":", " ").split()
    table = next((table.name for table in TABLES if table.name in words), TABLES[0].name)
    return FailedBatch(key, table, cut(sanitize(reason), _LONGEST))


def _failed_before(
    instance: dg.DagsterInstance, past: Sequence[PastImport]
) -> Mapping[str, Sequence[str]]:
    """The runs that failed before an extract was published, by its key; none before a rollback."""
    keys = {str(one.key): one for one in past}
    failed = import_runs(instance, [one.key for one in past], [dg.DagsterRunStatus.FAILURE])
    with_failures = {text for run in failed if (text := extract_of(run)) in keys}
    found: dict[str, Sequence[str]] = {}
    for text in with_failures:
        runs = import_runs(instance, [keys[text].key])
        ids = [run.run_id for run in runs]
        before = runs[ids.index(keys[text].run_id) + 1 :] if keys[text].run_id in ids else []
        found[text] = [
            run.run_id
            for run in takewhile(lambda run: not is_rollback(run), before)
            if run.is_failure and not is_cancelled(run)
        ]
    return found


def _alerts(
    instance: dg.DagsterInstance, status: ExtractStatus | None, progress: Progress
) -> list[dict[str, Any]]:
    """The alerts that stand; of failures of one extract the last, while nobody works on it."""
    over = {str(key) for key in progress.published}
    if status is not None and status.operation is not None:
        over.add(status.job_id)
    shown: dict[object, dict[str, Any]] = {}
    for place, alert in enumerate(read_alerts(instance)):
        if alert.get("kind") != "failed":
            shown[place] = alert
        elif alert.get("extract") not in over:
            shown.setdefault(alert.get("extract"), alert)
    return list(shown.values())


def _stopped_at(instance: dg.DagsterInstance, status: ExtractStatus | None) -> float | None:
    if status is None or status.run_id is None or status.status not in ("failed", "cancelled"):
        return None
    record = instance.get_run_record_by_id(status.run_id)
    return record.end_time if record is not None else None


def _queue(
    instance: dg.DagsterInstance, progress: Progress, status: ExtractStatus | None
) -> list[Queued]:
    """The extracts that come after the one at work."""
    if status is None or status.stage == "done":
        return []
    after = sorted(
        key for key in progress.known if key not in progress.published and key > status.extract
    )[:_MOST_QUEUED]
    if not after:
        return []
    staged = progress.staged_among(after)
    newest: dict[str, dg.DagsterRun] = {}
    keys = {str(key) for key in after}
    for run in import_runs(instance, after):
        text = next((t for t in (run.tags.get("kbo/extract"), _partition(run)) if t in keys), None)
        if text is not None:
            newest.setdefault(text, run)
    return [
        Queued(
            str(key),
            _waits(progress, key, newest.get(str(key)), status.extract, is_staged=key in staged),
            newest[str(key)].run_id if str(key) in newest else None,
        )
        for key in after
    ]


def _partition(run: dg.DagsterRun) -> str | None:
    return run.tags.get("dagster/partition")


def _waits(
    progress: Progress,
    key: ExtractKey,
    run: dg.DagsterRun | None,
    first: ExtractKey,
    *,
    is_staged: bool,
) -> str:
    if run is not None and not run.is_finished:
        is_queued = run.status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)
        return "waiting in the queue" if is_queued else _JOBS.get(job_of(run), "at work")
    if key in progress.cancelled:
        return f"cancelled; kbo retry {key} continues it"
    if run is not None and run.is_failure:
        return f"failed; kbo retry {key} continues it"
    return f"staged; waits for {first}" if is_staged else f"waits for {first}"


def render(page: Page) -> str:
    """The page as HTML; every text is escaped."""
    return _template().render(page=page, status=page.status)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kbo_pipeline.operate.processes.dashboard", "files"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": lambda value: f"{value:,}",
        "clock": clock,
        "iso": _iso,
        "duration": duration,
        "clean": lambda text: cut(sanitize(text), _LONGEST),
        "in_address": lambda text: quote(str(text), safe=""),
    }
    return environment.get_template("page.html")


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
