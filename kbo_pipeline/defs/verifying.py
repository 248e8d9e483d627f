"""The asset `full_verification`: a published extract against the Full of its number."""

from collections.abc import Iterator

import dagster as dg

from kbo_pipeline.core.errors import RegisterError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.pause_file import PAUSED, is_paused
from kbo_pipeline.defs.catalogue import OWNERS, table_of, tags, verification_metadata
from kbo_pipeline.defs.configuration import load_settings
from kbo_pipeline.defs.jobs import verify_full
from kbo_pipeline.defs.resources import permanent_errors_not_retried
from kbo_pipeline.fetch.zips import kept_zip, kept_zips
from kbo_pipeline.operate.repair.rebuild import kept_keys
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.operate.runs.priority import last_in_queue
from kbo_pipeline.operate.runs.progress import Progress
from kbo_pipeline.publish.publish import standing_of
from kbo_pipeline.publish.verification import Verification, published_at, verify

CHECK = "register_equals_full"


@dg.asset(
    deps=["published_extract"],
    partitions_def=kbo_extracts,
    group_name="publish",
    kinds={"duckdb"},
    owners=list(OWNERS),
    tags=tags("publish"),
    metadata=verification_metadata(),
    check_specs=[
        dg.AssetCheckSpec(
            CHECK,
            asset="full_verification",
            description="The register, as it was at the extract, is row for row the Full of the"
            " same number.",
        )
    ],
)
def full_verification(
    context: dg.AssetExecutionContext,
) -> Iterator[dg.MaterializeResult[None]]:
    """Compares the register, as it was at an extract, with the Full of the same number.

    All rows of all tables, in both directions. The Full has to lie in the downloads directory:
    drop it into the inbox, or `kbo fetch` it. Then this runs by itself, once.
    """
    with permanent_errors_not_retried(context) as settings:
        key = ExtractKey.parse(context.partition_key)
        zip_file = kept_zip(settings, ExtractKey(key.number, "full"))
        said: set[str] = set()

        def report(name: str, done: int, total: int) -> None:
            if name not in said:
                context.log.info(f"{key}: comparing {name}, {done} of {total} parts done")
                said.add(name)

        found = verify(settings, zip_file, report=report)
        (context.log.info if found.is_equal else context.log.warning)(str(found))
        yield dg.MaterializeResult(
            metadata={
                "full": zip_file.name,
                "drift": found.drift,
                "tables": table_of(
                    [
                        {
                            "table": name,
                            "rows_in_zip": drift.rows_in_zip,
                            "rows_in_register": drift.rows_in_register,
                            "only_in_zip": drift.only_in_zip,
                            "only_in_register": drift.only_in_register,
                        }
                        for name, drift in found.tables.items()
                    ]
                ),
            },
            check_results=[_result(found)],
        )


def _result(found: Verification) -> dg.AssetCheckResult:
    rows = [
        {"table": name, "only_in": side, "row": str(row)}
        for name, drift in found.tables.items()
        for side, rows in drift.samples.items()
        for row in rows
    ]
    return dg.AssetCheckResult(
        check_name=CHECK,
        passed=found.is_equal,
        severity=dg.AssetCheckSeverity.ERROR,
        description=str(found),
        metadata={"drift": found.drift, **({"sample": table_of(rows)} if rows else {})},
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
        standing = standing_of(settings.database)
    except RegisterError as error:
        return dg.SkipReason(str(error))
    fulls = sorted(key.number for key in kept_keys(settings) if key.type == "full")
    pairs = [(published_at(standing.published, n), ExtractKey(n, "full")) for n in fulls]
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
