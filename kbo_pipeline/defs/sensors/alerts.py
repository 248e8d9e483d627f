"""The sensor that alerts people: a failed import, a gap, a stale register, a refused login."""

import json
import time

import dagster as dg

from kbo_pipeline.core.errors import StorageError
from kbo_pipeline.defs.step import load_settings
from kbo_pipeline.operate.markers import store_alerts
from kbo_pipeline.operate.processes.children import alert_log
from kbo_pipeline.operate.repair.alerts import Alert, due_alerts, post, write_down

_MARK = "kbo/alert/"
_LOGGED, _POSTED = "logged", "posted"


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
