"""What `kbo doctor` looks at in Dagster's storage: daemon, sensors, runs, extracts, portal."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import dagster as dg
import psutil

from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.extracts import ExtractKey, PublishedState, key_or_none
from kbo_pipeline.core.files import is_locked
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import clock, counted, first_line
from kbo_pipeline.operate.markers import Poll, is_paused, read_poll
from kbo_pipeline.operate.repair.alerts import (
    alerts_of_portal,
    gap_below_staged,
    stale_register,
    what_helps,
)
from kbo_pipeline.operate.repair.findings import Finding, Severity, no_problem, problem
from kbo_pipeline.operate.runs.claims import claim_file, is_own
from kbo_pipeline.operate.runs.progress import (
    PUBLISH_JOB,
    REPORTED,
    ROLLBACK_JOB,
    Progress,
    does,
    extract_of,
    is_retried,
    job_of,
    newest_published,
    sensor_states,
)
from kbo_pipeline.operate.runs.recovery import WAITING_STATUSES, is_dead
from kbo_pipeline.operate.runs.status import error_of_run
from kbo_pipeline.read.published import (
    WARN_DAYS,
    compared_at,
    last_proof,
    published_state_of,
)

if TYPE_CHECKING:
    from dagster._core.scheduler.instigation import InstigatorState

_SETTLED_SECONDS = 60.0  # until all parts of `kbo start` have reported themselves
_SILENT_SECONDS = 180.0  # heartbeats and ticks come every 30 s or more often
_QUEUED_SECONDS = 3600.0
_LATE_SECONDS = 600.0


Sensors = Callable[[], Iterable[dg.SensorDefinition]]


@dataclass(frozen=True)
class Installation:
    """What is examined.

    Attributes:
        settings: say where everything is.
        instance: Dagster's instance.
        start_pid: the process of `kbo start`; None when none runs.
        sensors: gives the sensors, which are defined above this folder.
    """

    settings: Settings
    instance: dg.DagsterInstance
    start_pid: int | None
    sensors: Sensors

    @cached_property
    def progress(self) -> Progress:
        """How far each extract is."""
        return Progress(self.instance)

    @cached_property
    def poll(self) -> Poll | None:
        """The result of the last portal poll."""
        return read_poll(self.instance)

    @cached_property
    def running_seconds(self) -> float:
        """For how long `kbo start` runs; 0 when it does not."""
        try:
            return time.time() - psutil.Process(self.start_pid).create_time() if self.is_run else 0
        except psutil.Error:
            return 0.0

    @cached_property
    def newest(self) -> ExtractKey | None:
        """The newest published extract."""
        try:
            state = published_state_of(self.settings.database)
        except RegisterError:  # which is a finding of check_published
            state = PublishedState()
        return newest_published(state, self.progress)

    def is_ahead(self, key: ExtractKey) -> bool:
        """Tells whether an extract is yet to be published, and not overtaken by a Full."""
        return self.newest is None or key.number > self.newest.number

    def is_claimed(self, key: ExtractKey) -> bool:
        """Tells whether a process works on an extract."""
        lock = claim_file(self.settings, key)
        return lock.exists() and is_locked(lock)

    @property
    def is_run(self) -> bool:
        """Whether `kbo start` runs."""
        return self.start_pid is not None


def check_daemons(installation: Installation) -> Iterator[Finding]:
    """Whether all parts of Dagster's daemon are alive."""
    if installation.running_seconds <= _SETTLED_SECONDS:
        return
    instance, log = installation.instance, installation.settings.work_dir / "logs" / "daemon.log"
    beats = instance.get_daemon_heartbeats()
    now = time.time()
    silent = [
        name
        for name in instance.get_required_daemon_types()
        if name not in beats or now - beats[name].timestamp > _SILENT_SECONDS
    ]
    if silent:
        names = ", ".join(sorted(silent))
        yield problem("silent daemon", seconds=_SILENT_SECONDS, names=names, log=log)
    for name, beat in sorted(beats.items()):
        if beat.errors and now - beat.timestamp <= _SILENT_SECONDS:
            error = first_line(beat.errors[0].message)
            yield problem("daemon error", name=name, error=error, log=log)
    if not silent:
        yield no_problem("daemon", "all parts of it are alive")


def check_sensors(installation: Installation) -> Iterator[Finding]:
    """Whether a sensor was stopped by hand, fails, or has gone silent."""
    by_last_tick = sorted(sensor_states(installation.instance), key=_last_tick)
    newest = {state.instigator_name: state for state in by_last_tick}
    findings = [
        finding
        for sensor in installation.sensors()
        if (finding := _of_sensor(installation, sensor, newest.get(sensor.name))) is not None
    ]
    yield from findings
    if newest and not findings:
        yield no_problem("sensors", "none was stopped, and none has failed in its newest tick")


def _of_sensor(
    installation: Installation, sensor: dg.SensorDefinition, state: "InstigatorState | None"
) -> Finding | None:
    name, log = sensor.name, installation.settings.work_dir / "logs" / "code.log"
    is_started = state is not None and state.status.value == "RUNNING"
    if sensor.default_status == dg.DefaultSensorStatus.STOPPED and not is_started:
        return None  # off by default, and nobody has started it
    if state is not None and state.status.value == "STOPPED":
        return problem("stopped sensor", name=name)
    silent = max(_SILENT_SECONDS, 5.0 * (sensor.minimum_interval_seconds or 30))
    last_tick = _last_tick(state)
    if installation.running_seconds > silent and time.time() - last_tick > silent:
        since = f"since {clock(last_tick)}" if last_tick else "ever"
        return problem("silent sensor", name=name, since=since, log=log)
    if state is None:
        return None
    ticks = installation.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    if ticks and ticks[0].status.value == "FAILURE":
        error = ticks[0].error
        message = first_line(error.message if error else "") or "without a message"
        at = clock(ticks[0].timestamp)
        severity: Severity = "error" if installation.is_run else "warning"
        return problem("failed sensor", severity, name=name, time=at, error=message, log=log)
    return None


def check_stuck_runs(installation: Installation) -> Iterator[Finding]:
    """Whether a run has lost its process, or waits in the queue for too long."""
    settings, instance = installation.settings, installation.instance
    # Without kbo start none of the workers that it had launched lives.
    ended_at = 0.0 if installation.is_run else time.time()
    healthy = 0
    for run in installation.progress.unfinished_runs:
        extract = extract_of(run)
        name = f"run {run.run_id[:8]} ({job_of(run)})"
        if run.status in WAITING_STATUSES:
            record = instance.get_run_record_by_id(run.run_id)
            seconds = time.time() - record.create_timestamp.timestamp() if record else 0.0
            if seconds > _QUEUED_SECONDS:
                helps = "see in the web UI what it waits for"
                if not installation.is_run:
                    helps = "kbo start"
                if is_paused(settings):
                    helps = "kbo resume"
                hours = seconds / 3600
                yield problem("run waits", None, extract, run=name, hours=hours, remedy=helps)
                continue
        elif is_own(run):
            key = key_or_none(extract or "")
            if key is not None and not installation.is_claimed(key):
                yield problem("killed command", None, key, run=name, extract=key)
                continue
        elif is_dead(instance, settings, run, ended_at=ended_at):
            helps = "kbo start resumes it within a minute" if installation.is_run else "kbo start"
            severity: Severity = "warning" if installation.is_run else "error"
            yield problem("dead run", severity, extract, run=name, remedy=helps)
            continue
        healthy += 1
    yield no_problem("runs", f"{healthy} at work or in the queue" if healthy else "none at work")


def check_failed_runs(installation: Installation) -> Iterator[Finding]:
    """Whether an import, a rollback or a report has failed that nobody has taken up since."""
    instance, progress = installation.instance, installation.progress
    for text, record in sorted(progress.newest_runs.items()):
        key, run = key_or_none(text), record.dagster_run
        if key is None or not run.is_failure or is_retried(instance, run):
            continue
        is_passed = run.job_name != ROLLBACK_JOB and not installation.is_ahead(key)
        if is_passed and not (
            does(run, PUBLISH_JOB, REPORTED)
            and key in progress.published.keys() - progress.reported
        ):
            continue
        if key in progress.cancelled or installation.is_claimed(key):
            continue
        what = "change_report" if is_passed else job_of(run)
        error = error_of_run(instance, run)
        severity: Severity = "warning" if is_passed else "error"
        yield problem(
            "failed run", severity, text, job=what, error=error, remedy=what_helps(run, error)
        )


def check_pools(installation: Installation) -> Iterator[Finding]:
    """Whether runs that have ended still hold slots of pools, which no other run would get."""
    instance = installation.instance
    for pool in sorted(instance.event_log_storage.get_concurrency_keys()):
        slots = instance.event_log_storage.get_concurrency_info(pool).claimed_slots
        for run_id in sorted({slot.run_id for slot in slots}):
            record = instance.get_run_record_by_id(run_id)
            if record is None:
                yield problem("lost slot", pool=pool, run=run_id[:8])
            elif record.dagster_run.is_finished:
                severity: Severity = "warning" if installation.is_run else "error"
                yield problem("kept slot", severity, pool=pool, run=run_id[:8])


def check_extracts(installation: Installation) -> Iterator[Finding]:
    """Whether an extract waits for a person."""
    settings, progress = installation.settings, installation.progress
    gap = gap_below_staged(settings, progress)
    if gap is not None:
        first, alert = gap
        yield problem("gap", None, first, text=alert.error, remedy=alert.command)
    following = progress.next_to_apply
    ahead = (key for key in progress.known if installation.is_ahead(key))
    waiting = [
        finding
        for key in sorted(ahead)
        if (finding := _of_extract(installation, key, following)) is not None
    ]
    yield from waiting
    if gap is None and not waiting:
        yield no_problem("extracts", "none waits for a person")


def _of_extract(
    installation: Installation, key: ExtractKey, following: ExtractKey | None
) -> Finding | None:
    """What an unpublished extract waits for, unless something is at work on it or has failed."""
    progress = installation.progress
    if key in progress.cancelled:
        return problem("cancelled", None, key, extract=key)
    newest = progress.newest_run(key)
    is_at_work = any(extract_of(run) == str(key) for run in progress.unfinished_imports)
    if newest is None or newest.is_failure or is_at_work or installation.is_claimed(key):
        return None
    if newest.job_name == ROLLBACK_JOB:
        return problem("rolled back", None, key, extract=key)
    if installation.is_run or following not in (None, key):
        return None  # its turn comes by itself
    if key not in progress.staged:
        return problem("not staged", None, key, extract=key)
    if following is None:
        return None  # there is a gap below, which is a finding of its own
    total = len(progress.batches.get(key, ()))
    done = total - len(progress.missing_batches(key))
    return problem("not applied", None, key, done=done, total=total, extract=key)


def check_rejected_rows(installation: Installation) -> Iterator[Finding]:
    """Whether rows of the newest published extract, or of a later one, are set aside."""
    findings = [
        problem("rows set aside", None, key, rows=counted(rejected, "row"), extract=key)
        for key in sorted(installation.progress.known)
        if key == installation.newest or installation.is_ahead(key)
        if (rejected := installation.progress.rejected_rows(key))
    ]
    yield from findings or [no_problem("rows set aside", "none of the newest extract")]


def check_portal(installation: Installation) -> Iterator[Finding]:
    """What the last poll of the portal found; this asks no portal."""
    poll, settings = installation.poll, installation.settings
    if poll is None or not settings.has_account:
        if settings.has_account:
            yield no_problem("portal", f"{settings.portal_url}: was not asked yet")
        return
    asked = f"asked at {clock(poll.asked_at)}: {poll}"
    alerts = alerts_of_portal(poll)
    for alert in alerts:
        yield problem("portal needs a person", poll=asked, remedy=alert.command)
    late = time.time() - poll.next_at
    is_polled = installation.is_run and not is_paused(settings)
    if poll.is_failed and not alerts:
        helps = f"it is asked again at {clock(poll.next_at)}" if is_polled else "kbo start"
        yield problem("portal failed", poll=asked, remedy=helps)
    elif is_polled and late > _LATE_SECONDS:
        yield problem("portal not asked", poll=asked)
    elif poll.due and not installation.is_run:
        yield problem("extracts due", poll=asked)
    elif not alerts:
        yield no_problem("portal", asked)


def check_freshness(installation: Installation) -> Iterator[Finding]:
    """Whether the register is older than it should be."""
    published = installation.progress.newest_published
    instance, settings = installation.instance, installation.settings
    for alert in stale_register(instance, settings, published, None, time.time()):
        yield problem("stale", text=alert.error)


def check_proof(installation: Installation) -> Iterator[Finding]:
    """Whether the register is known to be equal to KBO's Full, and since when."""
    settings = installation.settings
    proof = last_proof(settings)
    since = compared_at(settings, proof)
    if proof is not None and not proof.is_equal:
        extract = proof.published
        yield problem("differs", proof=proof, extract=extract, directory=settings.proofs_dir)
    elif since is not None and settings.prove_days and (proof or settings.has_account):
        days = (datetime.now(UTC) - since).days
        if days >= max(WARN_DAYS, settings.prove_days + 3):
            yield problem("not proven", days=days)
        elif proof is not None:
            yield no_problem("proof", str(proof))


def _last_tick(state: "InstigatorState | None") -> float:
    tick = state.sensor_instigator_data if state else None
    return (tick.last_tick_timestamp if tick else None) or 0.0
