"""The asset `full_verification`: a published extract against the Full of its number."""

from collections.abc import Iterator

import dagster as dg

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.defs.metadata import OWNERS, table_of, tags, verification_metadata
from kbo_pipeline.defs.step import step_guard
from kbo_pipeline.fetch.zips import kept_zip
from kbo_pipeline.operate.runs.partitions import kbo_extracts
from kbo_pipeline.publish.verification import Verification, verify

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
    with step_guard(context) as settings:
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
