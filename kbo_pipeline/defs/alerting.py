"""The sensor that tells people: a failed import, a gap, a stale register, a refused login."""

import hashlib
import json
import time

import dagster as dg

from kbo_pipeline.alerts import Alert, post, write_down
from kbo_pipeline.core.errors import RegisterError, StorageError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.defs.configuration import load_settings
from kbo_pipeline.defs.inbox import INBOX_TAG
from kbo_pipeline.defs.polling import Poll, read_poll
from kbo_pipeline.defs.progress import (
    ROLLBACK_JOB,
    STAGED,
    Progress,
    extract_of,
    is_retried,
    job_of,
    runs_about,
)
from kbo_pipeline.defs.status import error_of_run
from kbo_pipeline.logs import alert_log
from kbo_pipeline.publish.publish import standing_of

_RUNS_LOOKED_AT = 50  # about no extract that is known
_PATIENCE_SECONDS = 600.0
_MARK = "kbo/alert/"
_LOGGED, _POSTED = "logged", "posted"
_JOBS = ("stage_extract", "apply_batches", "publish_extract", "materialize")


@dg.sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells of failed imports, gaps, a stale register and refused logins, once each:"
    " in the log, and at KBO_ALERT_WEBHOOK if that is set.",
)
def alert_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Sends what has not been sent; what the webhook does not take is sent at the next tick."""
    settings = load_settings()
    alerts = due_alerts(context.instance, settings, time.time())
    marks = _marks(context.instance, alerts)
    fresh = [alert for alert in alerts if alert.event not in marks]
    problems = []
    for alert in fresh:
        context.log.warning(str(alert))
        try:
            write_down(alert, alert_log(settings))
        except StorageError as error:
            problems.append(f"{error}; the next tick tries again")
            break
        _mark(context.instance, alert, _LOGGED)
    if settings.alert_webhook is not None:
        for alert in alerts:
            if marks.get(alert.event) == _POSTED:
                continue
            try:
                post(alert, settings.alert_webhook)
            except StorageError as error:
                problems.append(f"{error}; the next tick tries again")
                break
            _mark(context.instance, alert, _POSTED)
    for problem in problems:
        context.log.warning(problem)
    said = [*map(str, fresh), *problems]
    told = f"told before: {' | '.join(map(str, alerts))}" if alerts else "nothing to tell"
    return dg.SkipReason(" | ".join(said) or told)


def due_alerts(instance: dg.DagsterInstance, settings: Settings, now: float) -> list[Alert]:
    """What is wrong now, whether it was told before or not.

    Args:
        instance: where runs and publications are recorded.
        settings: say when a register is stale.
        now: seconds of the epoch.
    """
    progress = Progress(instance)
    poll = read_poll(instance)
    alerts = _failed(instance, progress)
    if poll is not None:
        alerts += alerts_of_portal(poll)
    alerts += _waiting(instance, settings, progress, now)
    alerts += stale_register(instance, settings, progress.newest_published, poll, now)
    return alerts


def _failed(instance: dg.DagsterInstance, progress: Progress) -> list[Alert]:
    """The failed imports that nobody has brought to their end since, one for each error."""
    newest = progress.newest_published
    ahead = {key for key in progress.known if newest is None or key.number > newest.number}
    ahead -= progress.cancelled  # a run at its start ends as failed then
    known = {str(key) for key in progress.known}
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
    others = instance.get_runs(failed, limit=_RUNS_LOOKED_AT)
    runs = runs_about(instance, ahead, failed.statuses)
    runs += [run for run in others if extract_of(run) not in known]
    alerts: dict[str, Alert] = {}
    for run in runs:
        extract, job = extract_of(run), job_of(run)
        if job not in _JOBS or is_retried(instance, run):
            continue
        error = error_of_run(instance, run)
        digest = hashlib.sha256(error.encode()).hexdigest()[:12]
        event = f"failed:{extract}:{job}:{digest}"
        alerts[event] = Alert(event, "failed", extract, job, error, what_helps(run))
    return list(alerts.values())


def what_helps(run: dg.DagsterRun) -> str:
    """What a person does about a failed run."""
    extract = extract_of(run)
    if run.job_name == ROLLBACK_JOB:
        return f"mend the cause, then kbo rollback {extract}"
    if INBOX_TAG in run.tags and job_of(run) == "stage_extract":
        return "see inbox/rejected, and drop a mended ZIP into the inbox"
    return f"mend the cause, then kbo retry {extract}" if extract else "see the run in the UI"


def alerts_of_portal(poll: Poll) -> list[Alert]:
    """What the last poll found to be wrong: a refused login, or a gap."""
    if poll.is_refused:
        event = f"refused:{poll.since:.0f}"
        helps = "correct KBO_USERNAME and KBO_PASSWORD in .env, which counts at once"
        return [Alert(event, "refused", None, "portal", poll.decision, helps)]
    if poll.gap is not None:
        helps = "get its ZIP or a later Full, then kbo import ZIP"
        return [Alert(f"gap:{poll.gap}", "gap", poll.gap, "portal", poll.decision, helps)]
    return []


def _waiting(
    instance: dg.DagsterInstance, settings: Settings, progress: Progress, now: float
) -> list[Alert]:
    """A gap that somebody has had the time to close who drops ZIPs one by one."""
    gap = gap_below_staged(settings, progress)
    if gap is None:
        return []
    first, alert = gap
    staged = dg.AssetRecordsFilter(STAGED, asset_partitions=[str(first)])
    records = instance.fetch_materializations(staged, limit=1).records
    return [alert] if records and now - records[0].timestamp >= _PATIENCE_SECONDS else []


def gap_below_staged(settings: Settings, progress: Progress) -> tuple[ExtractKey, Alert] | None:
    """The first staged extract that follows nothing, wherever it came from, and what it lacks."""
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
    """The lowest extract between these two that a person has undone, if that is what is missing."""
    try:
        undone = standing_of(settings.database).rolled_back
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
    """That no new extract has come for long: one alert for each newest extract.

    Args:
        instance: where publications are recorded.
        settings: say when a register is stale.
        published: the newest published extract.
        poll: what came of asking the portal for the last time.
        now: seconds of the epoch.
    """
    records = instance.fetch_materializations(dg.AssetKey("published_extract"), limit=1).records
    if not records or published is None:
        return []
    hours = (now - records[0].timestamp) / 3600
    if hours < settings.stale_hours:
        return []
    why = f"; the portal: {poll.decision}" if poll else ""
    error = f"{published} is the newest since {hours:.0f} hours{why}"
    helps = "kbo status says what is waited for"
    return [Alert(f"stale:{published}", "stale", str(published), "publish_extract", error, helps)]


def _marks(instance: dg.DagsterInstance, alerts: list[Alert]) -> dict[str, str]:
    """Which of these were told, by event: `logged` or `posted`."""
    stored = instance.run_storage.get_cursor_values({_MARK + alert.event for alert in alerts})
    return {name.removeprefix(_MARK): json.loads(text)["told"] for name, text in stored.items()}


def _mark(instance: dg.DagsterInstance, alert: Alert, told: str) -> None:
    mark = json.dumps({"told": told, "at": time.time()})
    instance.run_storage.set_cursor_values({_MARK + alert.event: mark})
