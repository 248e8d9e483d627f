"""The sensor that asks the portal, decides what is due, and starts it."""

import time
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING

import dagster as dg

from kbo_pipeline.core.errors import KboError, LoginRefusedError, PortalError
from kbo_pipeline.core.extracts import ExtractKey, plan_imports, zips_in
from kbo_pipeline.core.files import is_locked
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import duration
from kbo_pipeline.defs.jobs import stage_extract
from kbo_pipeline.defs.step import AT_IMPORT, load_settings
from kbo_pipeline.fetch.http import Limits
from kbo_pipeline.fetch.zips import next_login_at, open_portal
from kbo_pipeline.operate.markers import PAUSED, Poll, is_paused, read_poll, write_poll
from kbo_pipeline.operate.runs.claims import claim_file, queue_tags
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.operate.runs.progress import Progress, newest_published
from kbo_pipeline.read.published import published_state_of

if TYPE_CHECKING:
    from kbo_pipeline.fetch.portal import Offer, Portal

ASKING_SECONDS = 30.0
"""How long asking the portal may take: Dagster gives a sensor 60 s, and not all of it is ours."""

_LIMITS = Limits(connect=5, read=10, total=15, attempts=3, first_wait=1, longest_retry_after=5)
_FIRST_PAUSE = 60.0  # seconds, after the portal failed; doubled each time, up to the usual pause
_LONGEST_PAUSE = 3600.0
_MOST_FAILURES = 3  # of staging an extract; then a Full takes its place, if there is one
_TICK_SECONDS = 10


@dg.sensor(
    job=stage_extract,
    minimum_interval_seconds=min(_TICK_SECONDS, AT_IMPORT.poll_seconds),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks the portal for new extracts and starts importing those that are due.",
)
def kbo_extract_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Asks on start and then each `KBO_POLL_SECONDS`; its reason says what it decided and why."""
    settings = load_settings()
    if not settings.has_account:
        return dg.SkipReason(
            f"{settings.account_not_set}: not set, so the portal is not asked;"
            " the inbox alone works"
        )
    if is_paused(settings):
        return dg.SkipReason(PAUSED)
    with _asking:
        before = read_poll(context.instance)
        if before is not None and not _is_time(settings, before, time.time()):
            wait = before.next_at - time.time()
            return dg.SkipReason(f"{before}; asks again in {duration(wait)}")
        progress = Progress(context.instance)
        poll = _ask(settings, progress, before)
        write_poll(context.instance, poll)
    due = [ExtractKey.parse(text) for text in poll.due]
    startable = [key for key in due if _is_startable(settings, progress, key)]
    if not startable:
        return dg.SkipReason(str(poll))
    context.log.info(str(poll))
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"fetch:{key}:{poll.asked_at:.0f}",
                partition_key=str(key),
                tags=queue_tags(key, is_staged=False),
            )
            for key in startable
        ],
        dynamic_partitions_requests=[kbo_extracts.build_add_request([str(k) for k in startable])],
    )


_asking = Lock()
_asked_on_start = False  # a code server lives as long as `kbo start`
_portal: "tuple[Settings, Portal] | None" = None  # its session is kept between two polls


def _is_time(settings: Settings, before: Poll, now: float) -> bool:
    if before.is_refused and next_login_at(settings) is None:
        return True  # another account is set meanwhile, or it is time
    return now >= (before.next_at if _asked_on_start else before.not_before)


def _portal_of(settings: Settings) -> "Portal":
    """The portal of these settings, as `.env` may have changed since the last poll."""
    global _portal
    if _portal is None or _portal[0] != settings:
        if _portal is not None:
            _portal[1].close()
        _portal = (settings, open_portal(settings, _LIMITS))
    return _portal[1]


def _ask(settings: Settings, progress: Progress, before: Poll | None) -> Poll:
    """Asks the portal and plans; an error becomes a failed poll."""
    global _asked_on_start
    _asked_on_start = True
    now = time.time()
    try:
        offers = _portal_of(settings).list_extracts(within=ASKING_SECONDS)
        return _planned(settings, progress, offers, now)
    except KboError as error:
        is_again = before is not None and before.is_failed
        failures = before.failures + 1 if before and is_again else 1
        pause = min(_FIRST_PAUSE * 2 ** min(failures - 1, 20), settings.poll_seconds)
        asked = error.wait if isinstance(error, PortalError) and error.wait is not None else 0.0
        return Poll(
            asked_at=now,
            next_at=now + max(pause, asked),
            decision=str(error),
            is_failed=True,
            is_refused=isinstance(error, LoginRefusedError),
            not_before=now + asked if asked else 0.0,
            since=before.since if before and is_again else now,
            failures=failures,
        )


def _planned(settings: Settings, progress: Progress, offers: "list[Offer]", now: float) -> Poll:
    kept = {key for key, _ in zips_in(settings.downloads_dir)}
    offered = {offer.key for offer in offers} | kept
    unusable = {key for key, n in progress.staging_failures.items() if len(n) >= _MOST_FAILURES}
    state = published_state_of(settings.database)  # the ledger knows, whoever imported
    published = newest_published(state, progress)
    plan = plan_imports(offered, published, unusable, state.rolled_back)
    expires = {offer.key: offer.expires_date for offer in offers}
    next_expires = expires.get(plan.due[0]) if plan.due else None
    today = datetime.fromtimestamp(now, UTC).date()
    named = ", ".join(str(key) for key in plan.due[:5]) + (" ..." if len(plan.due) > 5 else "")
    return Poll(
        asked_at=now,
        next_at=now + settings.poll_seconds,
        decision=f"{named} due: {plan.reason}" if plan.due else plan.reason,
        due=tuple(str(key) for key in plan.due),
        days_left=(next_expires - today).days if next_expires else None,
        gap=plan.gap,
        since=now,
    )


def _is_startable(settings: Settings, progress: Progress, key: ExtractKey) -> bool:
    """Whether a run that stages it is missing: none is at work, and it is not staged."""
    if key in progress.at_staging or key in progress.staged or key in progress.cancelled:
        return False
    if is_locked(claim_file(settings, key)):
        return False
    failures = progress.staging_failures.get(key, [])
    pause = min(_FIRST_PAUSE * 2 ** (len(failures) - 1), _LONGEST_PAUSE)
    return not failures or time.time() >= failures[0] + pause
