"""The sensors that start what is due: what the portal offers, then each next stage.

But for the result of the last poll they keep no state, so a lost tick loses nothing. The storage id
in a run key is that of the event that makes the run due: an event starts one run, a new staging or
a repaired batch starts another.
"""

import time
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import dagster as dg

from kbo_pipeline.core.errors import (
    KboError,
    LoginRefusedError,
    PortalError,
    RegisterError,
    StorageError,
)
from kbo_pipeline.core.extracts import ExtractKey, plan_imports, zips_in
from kbo_pipeline.core.files import is_locked
from kbo_pipeline.core.settings import Settings
from kbo_pipeline.core.text import counted, duration, listed
from kbo_pipeline.defs.jobs import (
    apply_batches,
    build_search_index,
    export_parquet,
    publish_extract,
    stage_extract,
    verify_full,
)
from kbo_pipeline.defs.step import AT_IMPORT, load_settings
from kbo_pipeline.fetch.http import Limits
from kbo_pipeline.fetch.zips import kept_zips, next_login_at, open_portal
from kbo_pipeline.operate.markers import PAUSED, Poll, is_paused, read_poll, write_poll
from kbo_pipeline.operate.runs.claims import claim_file, last_in_queue, queue_tags
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.operate.runs.progress import (
    RANGE_END_TAG,
    RANGE_START_TAG,
    Progress,
    newest_published,
)
from kbo_pipeline.read.index import why_not_current
from kbo_pipeline.read.published import compared_at, last_proof, published_state_of

if TYPE_CHECKING:
    from kbo_pipeline.fetch.portal import Offer, Portal

ASKING_SECONDS = 30.0
"""How long asking the portal may take: Dagster gives a sensor 60 s, and not all of it is ours."""

CHAIN_SECONDS = 2
"""Seconds between two looks, and so about the longest that a next stage waits to start."""

_LIMITS = Limits(connect=5, read=10, total=15, attempts=3, first_wait=1, longest_retry_after=5)
_FIRST_PAUSE = 60.0  # seconds, after the portal failed; doubled each time, up to the usual pause
_LONGEST_PAUSE = 3600.0
_MOST_FAILURES = 3  # of staging an extract; then a Full takes its place, if there is one
_TICK_SECONDS = 10

_BRUSSELS = ZoneInfo("Europe/Brussels")
_BUSY_HOURS = range(6, 12)

_asking = Lock()
_asked_on_start = False  # a code server lives as long as `kbo start`
_portal: "tuple[Settings, Portal] | None" = None  # its session is kept between two polls


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


@dg.sensor(
    job=apply_batches,
    minimum_interval_seconds=CHAIN_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts applying the next staged extract.",
)
def apply_when_staged(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Requests the run that applies the next extract in order."""
    progress = Progress(context.instance)
    key = _next_in_order(progress)
    if isinstance(key, dg.SkipReason):
        return key
    batches = progress.batches[key]
    context.log.info(f"{key} is staged: {counted(len(batches), 'batch', 'batches')} to apply")
    return dg.RunRequest(
        run_key=f"apply:{key}:{progress.staged[key]}",
        tags={
            **queue_tags(key, is_staged=True),
            RANGE_START_TAG: batches[0],
            RANGE_END_TAG: batches[-1],
        },
    )


@dg.sensor(
    job=publish_extract,
    minimum_interval_seconds=CHAIN_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Publishes the next extract once its batches are all applied.",
)
def publish_when_applied(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Requests the run that publishes the extract whose last batch is applied."""
    progress = Progress(context.instance)
    key = _next_in_order(progress)
    if isinstance(key, dg.SkipReason):
        return key
    missing = progress.missing_batches(key)
    if missing:
        total = len(progress.batches[key])
        return dg.SkipReason(f"{key}: {len(missing)} of {total} batches are not applied")
    context.log.info(f"{key}: all batches are applied: to be published")
    newest = max(max(ids.values()) for ids in progress.applied(key).values())
    return dg.RunRequest(
        run_key=f"publish:{key}:{newest}",
        partition_key=str(key),
        tags=queue_tags(key, is_staged=True),
    )


def _next_in_order(progress: Progress) -> ExtractKey | dg.SkipReason:
    """The extract that may go on now, or why none may."""
    key = progress.next_to_apply
    if key is None:
        return dg.SkipReason("no staged extract follows what is published")
    settings = load_settings()
    if is_paused(settings):
        return dg.SkipReason(PAUSED)
    if key in progress.cancelled:
        return dg.SkipReason(f"{key} is cancelled; kbo retry {key} continues it")
    if key in progress.at_staging:
        return dg.SkipReason(f"{key} is being staged")
    if is_locked(claim_file(settings, key)):
        return dg.SkipReason(f"{key} is being worked on")
    return key


@dg.sensor(
    job=export_parquet,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Exports each newly published extract as Parquet. Off until somebody starts it.",
)
def export_when_published(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Requests the export of the newest published extract."""
    settings = load_settings()
    if is_paused(settings):
        return dg.SkipReason(PAUSED)
    try:
        key = published_state_of(settings.database).newest
    except RegisterError as error:
        return dg.SkipReason(str(error))
    published = Progress(context.instance).published
    if key is None or key not in published:
        return dg.SkipReason("nothing is published")
    context.log.info(f"{key} is published: to be exported")
    return dg.RunRequest(
        run_key=f"export:{key}:{published[key]}:{settings.privacy}",
        partition_key=str(key),
        tags=last_in_queue(key),
    )


@dg.sensor(
    job=build_search_index,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Brings the search index up to date after each publication and rollback, and makes"
    " one that is missing or damaged.",
)
def index_when_published(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Requests one run for each publication, and each hour one while the index is not right."""
    settings = load_settings()
    if is_paused(settings):
        return dg.SkipReason(PAUSED)
    try:
        state = published_state_of(settings.database)
        why = why_not_current(settings, state)
    except (RegisterError, StorageError) as error:
        return dg.SkipReason(str(error))
    published = Progress(context.instance).published
    key = state.newest
    if key is None or key not in published:
        return dg.SkipReason("nothing is published")
    if why is None:
        return dg.SkipReason(f"the search index is of {key}")
    context.log.info(why)
    hour = datetime.now(UTC).strftime("%Y-%m-%dT%H")
    return dg.RunRequest(
        run_key=f"index:{key}:{published[key]}:{settings.privacy}:{hour}",
        tags=last_in_queue(key),
    )


@dg.sensor(
    job=verify_full,
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Compares the register with KBO's Full of the newest number each KBO_PROVE_DAYS:"
    " fetches it, and removes it afterwards. Not between 6 and 12 o'clock in Brussels, when KBO"
    " publishes.",
)
def proof_sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Requests one run a day at most; any import comes first."""
    settings = load_settings()
    if is_paused(settings):
        return dg.SkipReason(PAUSED)
    if not settings.prove_days:
        return dg.SkipReason("KBO_PROVE_DAYS is 0: nothing is compared by itself")
    if not settings.has_account:
        return dg.SkipReason(f"{settings.account_not_set}: not set, so no Full can be fetched")
    try:
        key = published_state_of(settings.database).newest
        proof = last_proof(settings)
        since = compared_at(settings, proof)
    except (RegisterError, StorageError) as error:
        return dg.SkipReason(str(error))
    published = Progress(context.instance).published
    if key is None or key not in published or since is None:
        return dg.SkipReason("nothing is published")
    wait = since + timedelta(days=settings.prove_days) - datetime.now(UTC)
    if wait > timedelta():
        what = str(proof or "nothing is compared yet")
        return dg.SkipReason(f"{what}; next in {duration(wait.total_seconds())}")
    now = datetime.now(_BRUSSELS)
    if now.hour in _BUSY_HOURS:
        return dg.SkipReason(f"{key} is to be compared with its Full after {_BUSY_HOURS.stop}:00")
    context.log.info(f"{key} is to be compared with its Full")
    return dg.RunRequest(
        run_key=f"prove:{key}:{published[key]}:{now.date()}",
        partition_key=str(key),
        tags=last_in_queue(key),
    )


@dg.sensor(
    job=verify_full,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Compares the register with a Full in the downloads directory whose number was"
    " published as an Update. It downloads nothing.",
)
def verify_when_at_hand(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Requests one run for each publication and ZIP.

    A Full that was itself published needs none: applying compared it row for row, and the check
    `ledger_equals_rows` counted the result.
    """
    settings = load_settings()
    if is_paused(settings):
        return dg.SkipReason(PAUSED)
    try:
        state = published_state_of(settings.database)
    except RegisterError as error:
        return dg.SkipReason(str(error))
    kept = zips_in(settings.downloads_dir)
    fulls = sorted(key.number for key, _ in kept if key.type == "full")
    pairs = [(state.at(n), ExtractKey(n, "full")) for n in fulls]
    wanted = [(key, full) for key, full in pairs if key is not None and key.type == "update"]
    if not wanted:
        return dg.SkipReason("no Full is at hand whose number was published as an Update")
    published = Progress(context.instance).published  # older extracts are forgotten
    due = [(key, full) for key, full in wanted if key in published]
    if not due:
        return dg.SkipReason("the Fulls at hand are of extracts that the web UI no longer lists")
    context.log.info(f"to be compared: {listed((f'{key} with {full}' for key, full in due), 3)}")
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"verify:{key}:{published[key]}:{stat.st_mtime_ns}:{stat.st_size}",
                partition_key=str(key),
                tags=last_in_queue(key),
            )
            for key, full in due
            for stat in [file.stat() for file in kept_zips(settings, full)[:1]]
        ]
    )
