"""What chains the stages: two sensors without memory, which compare what is there.

A lost tick loses nothing. The storage id in a run key is that of the event that makes the run due:
the same event starts one run, a new staging or a repaired batch starts another.
"""

import dagster as dg

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.files import is_locked
from kbo_pipeline.defs.jobs import apply_batches, publish_extract
from kbo_pipeline.defs.resources import load_settings
from kbo_pipeline.operate.markers import PAUSED, is_paused
from kbo_pipeline.operate.runs.claims import claim_file, queue_tags
from kbo_pipeline.operate.runs.progress import RANGE_END_TAG, RANGE_START_TAG, Progress

CHAIN_SECONDS = 2
"""Between two looks at what is to be done next; nobody waits much longer for the next run."""


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
