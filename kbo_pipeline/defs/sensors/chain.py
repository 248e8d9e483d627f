"""The sensors that start what is due next: applying, publishing, exports, verifications.

They keep no state, so a lost tick loses nothing. The storage id in a run
key is that of the event that makes the run due: an event starts one run, a new staging or a
repaired batch starts another.
"""

import dagster as dg

from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.extracts import ExtractKey, zips_in
from kbo_pipeline.core.files import is_locked
from kbo_pipeline.core.text import counted, listed
from kbo_pipeline.defs.jobs import apply_batches, export_parquet, publish_extract, verify_full
from kbo_pipeline.defs.step import load_settings
from kbo_pipeline.fetch.zips import kept_zips
from kbo_pipeline.operate.markers import PAUSED, is_paused
from kbo_pipeline.operate.runs.claims import claim_file, last_in_queue, queue_tags
from kbo_pipeline.operate.runs.progress import RANGE_END_TAG, RANGE_START_TAG, Progress
from kbo_pipeline.read.published import published_state_of

CHAIN_SECONDS = 2
"""Seconds between two looks, and so about the longest that a next stage waits to start."""


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
    known = Progress(context.instance).published  # older extracts are forgotten
    due = [(key, full) for key, full in wanted if key in known]
    if not due:
        return dg.SkipReason("the Fulls at hand are of extracts that the web UI no longer lists")
    context.log.info(f"to be compared: {listed((f'{key} with {full}' for key, full in due), 3)}")
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"verify:{key}:{known[key]}:{stat.st_mtime_ns}:{stat.st_size}",
                partition_key=str(key),
                tags=last_in_queue(key),
            )
            for key, full in due
            for stat in [file.stat() for file in kept_zips(settings, full)[:1]]
        ]
    )
