"""Alerts: what people should know without asking, and how it reaches a log and a webhook."""

import hashlib
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import dagster as dg

from kbo_pipeline.core.environment import is_this_machine
from kbo_pipeline.core.errors import RegisterError, StorageError
from kbo_pipeline.core.extracts import ExtractKey, key_or_none
from kbo_pipeline.core.files import make_private
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.operate.markers import Poll, read_poll
from kbo_pipeline.operate.runs.progress import (
    INBOX_TAG,
    ROLLBACK_JOB,
    STAGED,
    Progress,
    extract_of,
    import_runs,
    imports,
    is_cancelled,
    is_retried,
    job_of,
)
from kbo_pipeline.operate.runs.status import error_of_run
from kbo_pipeline.read.published import last_proof, published_state_of

Kind = Literal["failed", "gap", "stale", "refused", "differs"]

_SECONDS = 10.0
_RUNS_LOOKED_AT = 50  # about no extract that is known
_PATIENCE_SECONDS = 600.0
_JOBS = ("stage_extract", "apply_batches", "publish_extract", "materialize")


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that a person should know. Sent once an event.

    Attributes:
        event: names what happened: two alerts of one event are one.
        kind: a failed import, a gap, a stale register, a refused login, or that the register
            differs from KBO's Full.
        extract: key of the extract that it is about; None when it is about none.
        stage: where it happened: a job's name, or `portal`.
        error: what is wrong, in one line.
        command: what helps.
    """

    event: str
    kind: Kind
    extract: str | None
    stage: str
    error: str
    command: str

    def __str__(self) -> str:
        extract = f"{self.extract}, " if self.extract else ""
        return f"ALERT {self.kind} ({extract}{self.stage}): {self.error}; {self.command}"

    def to_json(self) -> dict[str, Any]:
        """What the webhook gets; `text` is for those that show one line, such as Slack's."""
        return {**asdict(self), "text": str(self)}


def write_down(alert: Alert, file: Path) -> None:
    """Adds an alert to the log of alerts, a line with the time.

    Raises:
        StorageError: it cannot be written.
    """
    now = datetime.now().astimezone()
    try:
        make_private(file.parent)
        with file.open("a", encoding="utf-8") as log:
            log.write(f"{now:%Y-%m-%d %H:%M:%S %z} {alert}\n")
    except OSError as error:
        raise StorageError(
            f"{file}: cannot be written ({error.strerror}); see its permissions and its disk"
        ) from None


def post(alert: Alert, webhook: str) -> None:
    """Posts an alert as JSON.

    Raises:
        StorageError: the webhook does not take it; names its host, as its path may be a secret.
    """
    import requests  # only who has something to say needs it

    host = urlsplit(webhook).hostname
    place = f"KBO_ALERT_WEBHOOK at {host}"
    try:
        with requests.Session() as session:
            session.trust_env = not is_this_machine(host)
            answer = session.post(
                webhook,
                json=alert.to_json(),
                timeout=_SECONDS,
                allow_redirects=False,
                stream=True,
            )
            answer.close()
    except requests.RequestException as error:
        raise StorageError(f"{place}: {type(error).__name__}; see whether it runs") from None
    if not 200 <= answer.status_code < 300:
        raise StorageError(f"{place}: answers {answer.status_code}; check the address")


def due_alerts(instance: dg.DagsterInstance, settings: Settings, now: float) -> list[Alert]:
    """What is wrong at `now`, in seconds of the epoch; whether an alert was sent before or not."""
    progress = Progress(instance)
    poll = read_poll(instance)
    alerts = _failed(instance, progress)
    if poll is not None:
        alerts += alerts_of_portal(poll)
    alerts += _waiting(instance, settings, progress, now)
    alerts += stale_register(instance, settings, progress.newest_published, poll, now)
    return alerts + differences(settings)


def differences(settings: Settings) -> list[Alert]:
    """That the register was not equal to KBO's Full when it was compared last."""
    proof = last_proof(settings)
    if proof is None or proof.is_equal:
        return []
    event = f"differs:{proof.published}:{proof.verified_at.timestamp():.0f}"
    helps = f"kbo doctor says where to look; kbo repair {proof.published} closes the difference"
    return [Alert(event, "differs", proof.published, "full_verification", str(proof), helps)]


def _failed(instance: dg.DagsterInstance, progress: Progress) -> list[Alert]:
    """The failed imports that nothing has completed since, one alert for each error."""
    newest = progress.newest_published
    ahead = {key for key in progress.known if newest is None or key.number > newest.number}
    ahead -= progress.cancelled  # a run at its start ends as failed then
    keys = {str(key) for key in progress.known}
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
    others = instance.get_runs(failed, limit=_RUNS_LOOKED_AT)
    runs = import_runs(instance, ahead, failed.statuses)
    runs += [run for run in others if imports(run) and extract_of(run) not in keys]
    alerts: dict[str, Alert] = {}
    for run in runs:
        extract, job = extract_of(run), job_of(run)
        if job not in _JOBS or is_retried(instance, run) or _is_mistyped(run):
            continue
        if is_cancelled(run):  # at its start, which ends it as failed
            continue
        error = error_of_run(instance, run)
        digest = hashlib.sha256(error.encode()).hexdigest()[:12]
        event = f"failed:{extract}:{job}:{digest}"
        alerts[event] = Alert(event, "failed", extract, job, error, what_helps(run, error))
    return list(alerts.values())


def what_helps(run: dg.DagsterRun, error: str = "") -> str:
    """What a person does about a failed run, whose error may say that nothing is to be fixed."""
    extract = extract_of(run)
    if f"kbo retry {extract} stages it again" in error:
        return f"kbo retry {extract}, or Retry on /kbo"
    if run.job_name == ROLLBACK_JOB:
        return f"fix the cause, then kbo rollback {extract}"
    if INBOX_TAG in run.tags and job_of(run) == "stage_extract":
        return "see inbox/rejected, and drop a corrected ZIP into the inbox"
    return f"fix the cause, then kbo retry {extract}" if extract else "see the run in the web UI"


def _is_mistyped(run: dg.DagsterRun) -> bool:
    """Whether a run has failed of a partition that somebody has added under a wrong name.

    The partition is removed, and nothing is left to be done.
    """
    extract = extract_of(run)
    return extract is not None and key_or_none(extract) is None


def alerts_of_portal(poll: Poll) -> list[Alert]:
    """What the last poll found to be wrong: a refused login, or a gap."""
    if poll.is_refused:
        event = f"refused:{poll.since:.0f}"
        helps = "correct KBO_USERNAME and KBO_PASSWORD in .env, which takes effect at once"
        return [Alert(event, "refused", None, "portal", poll.decision, helps)]
    if poll.gap is not None:
        helps = "get its ZIP or a later Full, then kbo import ZIP"
        return [Alert(f"gap:{poll.gap}", "gap", poll.gap, "portal", poll.decision, helps)]
    return []


def _waiting(
    instance: dg.DagsterInstance, settings: Settings, progress: Progress, now: float
) -> list[Alert]:
    """A gap that has lasted longer than somebody needs who drops ZIPs one by one."""
    gap = gap_below_staged(settings, progress)
    if gap is None:
        return []
    first, alert = gap
    staged = dg.AssetRecordsFilter(STAGED, asset_partitions=[str(first)])
    records = instance.fetch_materializations(staged, limit=1).records
    return [alert] if records and now - records[0].timestamp >= _PATIENCE_SECONDS else []


def gap_below_staged(settings: Settings, progress: Progress) -> tuple[ExtractKey, Alert] | None:
    """The first staged extract that follows no published one, and an alert on what it lacks."""
    newest = progress.newest_published
    above = [key for key in progress.staged if newest is None or key.number > newest.number]
    if not above or progress.next_to_apply is not None:
        return None
    first = min(above)
    missing = f"{newest.number + 1:04d}-update" if newest else "a Full"
    error = f"{first} is staged and waits for {missing}"
    helps = "get its ZIP or a later Full, then kbo import ZIP"
    undone = _rolled_back(settings, newest, first)
    if undone is not None:
        missing = str(undone)
        error = f"{first} is staged and waits for {undone}, which was rolled back"
        helps = f"kbo retry {undone} imports it again, or import a Full above it"
    return first, Alert(f"gap:{missing}", "gap", missing, "stage_extract", error, helps)


def _rolled_back(
    settings: Settings, newest: ExtractKey | None, first: ExtractKey
) -> ExtractKey | None:
    """The rolled-back extract that is missing between these two; None when none is."""
    try:
        undone = published_state_of(settings.database).rolled_back
    except RegisterError:  # kbo doctor tells of it
        return None
    between = [
        key
        for key in undone
        if key.number < first.number
        and (key.number == newest.number + 1 if newest else key.type == "full")
    ]
    return min(between, default=None)


def stale_register(
    instance: dg.DagsterInstance,
    settings: Settings,
    published: ExtractKey | None,
    poll: Poll | None,
    now: float,
) -> list[Alert]:
    """That no new extract has come for long: one alert for each newest published extract.

    `now` is in seconds of the epoch.
    """
    records = instance.fetch_materializations(dg.AssetKey("published_extract"), limit=1).records
    if not records or published is None:
        return []
    hours = (now - records[0].timestamp) / 3600
    if hours < settings.stale_hours:
        return []
    why = f"; the portal: {poll.decision}" if poll else ""
    error = f"{published} has been the newest for {hours:.0f} hours{why}"
    helps = "kbo status shows what it waits for"
    return [Alert(f"stale:{published}", "stale", str(published), "publish_extract", error, helps)]
