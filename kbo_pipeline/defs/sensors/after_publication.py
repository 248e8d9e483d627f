"""The sensors that start exports and verifications after a publication."""

import dagster as dg

from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.defs.jobs import export_parquet, verify_full
from kbo_pipeline.defs.resources import load_settings
from kbo_pipeline.fetch.zips import kept_zips
from kbo_pipeline.operate.markers import PAUSED, is_paused
from kbo_pipeline.operate.repair.rebuild import kept_keys
from kbo_pipeline.operate.runs.claims import last_in_queue
from kbo_pipeline.operate.runs.progress import Progress
from kbo_pipeline.read.published import published_state_of


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
    " published as an Update. It downloads none.",
)
def verify_when_at_hand(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Requests one run for each publication and ZIP.

    A Full that was published itself was compared when it was applied, row for row; and the check
    `ledger_equals_rows` has counted what came of it.
    """
    settings = load_settings()
    if is_paused(settings):
        return dg.SkipReason(PAUSED)
    try:
        standing = published_state_of(settings.database)
    except RegisterError as error:
        return dg.SkipReason(str(error))
    fulls = sorted(key.number for key in kept_keys(settings) if key.type == "full")
    pairs = [(standing.at(n), ExtractKey(n, "full")) for n in fulls]
    wanted = [(key, full) for key, full in pairs if key is not None and key.type == "update"]
    if not wanted:
        return dg.SkipReason("no Full is at hand whose number was published as an Update")
    known = Progress(context.instance).published  # of older extracts nothing is told any more
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"verify:{key}:{known[key]}:{stat.st_mtime_ns}:{stat.st_size}",
                partition_key=str(key),
                tags=last_in_queue(key),
            )
            for key, full in wanted
            if key in known
            for stat in [file.stat() for file in kept_zips(settings, full)[:1]]
        ]
    )
