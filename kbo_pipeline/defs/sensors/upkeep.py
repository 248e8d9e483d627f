"""The sensors that start no run: one removes what is old, one tells people what is wrong."""

import json
import time

import dagster as dg

from kbo_pipeline.core.errors import RegisterError, StorageError
from kbo_pipeline.core.extracts import BatchKey, ExtractKey
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.defs.step import load_settings
from kbo_pipeline.fetch.zips import remove_old_zips
from kbo_pipeline.operate.markers import store_alerts
from kbo_pipeline.operate.processes.children import alert_log
from kbo_pipeline.operate.repair.alerts import Alert, due_alerts, post, write_down
from kbo_pipeline.operate.runs.claims import claim
from kbo_pipeline.operate.runs.live import forget_live
from kbo_pipeline.operate.runs.partitions import (
    batch_or_none,
    forget_extract,
    mistyped_partitions,
    remove_partition,
)
from kbo_pipeline.operate.runs.progress import (
    NOT_FINISHED_STATUSES,
    RANGE_END_TAG,
    Progress,
    runs_about,
)
from kbo_pipeline.read.published import published_state_of
from kbo_pipeline.read.report import remove_report
from kbo_pipeline.stage.staged import staging_file

_MARK = "kbo/alert/"
_LOGGED, _POSTED = "logged", "posted"

_SECONDS_A_TICK = 20.0
"""After so long the next tick continues: Dagster gives a sensor 60 s."""


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Removes partitions, runs, events and reports of old extracts (KBO_KEEP_EXTRACTS),"
    " old ZIPs (KBO_KEEP_ZIPS_DAYS), and partitions that were added under a name that is none. The"
    " register and its ledger keep their whole history.",
)
def retention_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Removes what is too old, for some seconds at most; its reason lists it."""
    settings = load_settings()
    removed = remove_mistyped(context.instance)
    deadline = time.monotonic() + _SECONDS_A_TICK
    for key in old_extracts(Progress(context.instance), settings.keep_extracts):
        if remove_extract(context.instance, settings, key):
            removed.append(str(key))
        if time.monotonic() > deadline:
            break
    try:
        published = [key for key, _ in published_state_of(settings.database).published]
    except RegisterError as error:
        return dg.SkipReason(str(error))
    removed += [file.name for file in remove_old_zips(settings, published, time.time())]
    return dg.SkipReason(f"removed: {', '.join(removed)}" if removed else "nothing is too old")


def remove_mistyped(instance: dg.DagsterInstance) -> list[str]:
    """Removes the partitions under wrong names, but those of a run that will say so itself."""
    runs = Progress(instance).unfinished_runs
    awaited = {value for run in runs for value in run.tags.values()}
    mistyped = [found for found in mistyped_partitions(instance) if found[1] not in awaited]
    for partitions, name in mistyped:
        remove_partition(instance, partitions, name)
    return [name for _, name in mistyped]


def old_extracts(progress: Progress, keep: int) -> list[ExtractKey]:
    """The extracts below the newest published ones, the oldest first; published or not."""
    published = sorted({key.number for key in progress.published})
    if len(published) < keep:
        return []
    first_kept = published[-keep]
    old = (key for key in progress.known if key.number < first_kept)
    return sorted(old)


def remove_extract(instance: dg.DagsterInstance, settings: Settings, key: ExtractKey) -> bool:
    """Removes what Dagster holds of an extract; False when a run is at work on it.

    Its own partition goes last: if the process is killed before, the next tick removes the rest.
    """
    runs = runs_about(instance, [key])
    if any(run.status in NOT_FINISHED_STATUSES for run in runs):
        return False
    try:
        with claim(settings, key, patience=0.0):
            for run in runs:
                if not _is_about_later(run, key):
                    instance.compute_log_manager.delete_logs(prefix=[run.run_id])
                    instance.delete_run(run.run_id)
            forget_extract(instance, key, is_whole=True)
            remove_report(settings, key)
            staging_file(settings.staging_dir, key).unlink(missing_ok=True)
            forget_live(settings, key)
            instance.delete_dynamic_partition("kbo_extracts", str(key))
    except StorageError:
        return False
    return True


def _is_about_later(run: dg.DagsterRun, key: ExtractKey) -> bool:
    """Whether a run over a range of batches also holds events of a later extract."""
    last = batch_or_none(run.tags.get(RANGE_END_TAG, ""))
    return isinstance(last, BatchKey) and last.extract.number > key.number


@dg.sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Alerts of failed imports, gaps, a stale register and refused logins, once each:"
    " in the log, and at KBO_ALERT_WEBHOOK if that is set.",
)
def alert_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Sends each alert once; one that the webhook does not take is sent again at the next tick."""
    settings = load_settings()
    alerts = due_alerts(context.instance, settings, time.time())
    store_alerts(context.instance, [alert.to_json() for alert in alerts])  # for the page /kbo
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
    sent_before = f"sent before: {' | '.join(map(str, alerts))}" if alerts else "no alert is due"
    return dg.SkipReason(" | ".join([*map(str, fresh), *problems]) or sent_before)


def _marks(instance: dg.DagsterInstance, alerts: list[Alert]) -> dict[str, str]:
    """How far each of these was sent, by event: `logged` or `posted`."""
    stored = instance.run_storage.get_cursor_values({_MARK + alert.event for alert in alerts})
    return {name.removeprefix(_MARK): json.loads(text)["told"] for name, text in stored.items()}


def _mark(instance: dg.DagsterInstance, alert: Alert, how: str) -> None:
    mark = json.dumps({"told": how, "at": time.time()})
    instance.run_storage.set_cursor_values({_MARK + alert.event: mark})
