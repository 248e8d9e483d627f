"""The asset checks: declared for the UI, evaluated when publishing, and by hand at any time."""

from collections.abc import Iterator

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import Table
from kbo_pipeline.defs.step import step_guard
from kbo_pipeline.operate.runs.progress import PUBLISHED
from kbo_pipeline.publish.checking import CheckResult, check_published
from kbo_pipeline.publish.checks import CHECKS

ACCEPT_FAULTS_TAG = "kbo/accept_faults"
"""Tag of a run that sets aside however many faulty rows an extract has: who accepts that."""


def _asset(table: Table | None) -> dg.AssetKey:
    return PUBLISHED if table is None else dg.AssetKey(table.name)


_PLACES = {
    dg.AssetCheckKey(_asset(table), check.name): (check.name, table.name if table else None)
    for check in CHECKS
    for table in check.tables
}


@dg.multi_asset_check(
    name="check_published",
    specs=[
        dg.AssetCheckSpec(
            check.name,
            asset=_asset(table),
            description=check.description
            + (
                "\n\nStops publication."
                if check.severity == "error"
                else "\n\nA warning: it stops nothing."
            ),
        )
        for check in CHECKS
        for table in check.tables
    ],
    can_subset=True,
)
def check_published_register(
    context: dg.AssetCheckExecutionContext, duckdb: DuckDBResource
) -> Iterator[dg.AssetCheckResult]:
    """Looks at all rows of what readers have; publishing looks at each extract by itself.

    Whoever materializes assets in the UI asks for their checks too. Then nothing is done here:
    publishing tells what it found.
    """
    if context.run.asset_selection:
        return
    with (
        step_guard(context.op_execution_context) as settings,
        duckdb.get_connection() as connection,
    ):
        key, results = check_published(
            connection,
            settings.database,
            max_loss_percent=settings.max_loss_percent,
            max_loss_percent_full=settings.max_loss_percent_full,
            only={_PLACES[check] for check in context.selected_asset_check_keys},
        )
        for result in results:
            evaluation = evaluated(key, result)
            yield dg.AssetCheckResult(
                asset_key=evaluation.asset_key,
                check_name=evaluation.check_name,
                passed=evaluation.passed,
                severity=evaluation.severity,
                description=evaluation.description,
                metadata=evaluation.metadata,
            )


def evaluated(key: ExtractKey, result: CheckResult) -> dg.AssetCheckEvaluation:
    """What a check found, as Dagster shows it."""
    found = result.found
    metadata: dict[str, dg.MetadataValue] = {
        "extract": dg.MetadataValue.text(str(key)),
        "count": dg.MetadataValue.int(found.count),
        "looked_at": dg.MetadataValue.text(found.looked_at),
    }
    if found.sample:
        metadata["sample"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        name: value if isinstance(value, int) else str(value or "")
                        for name, value in zip(found.columns, row, strict=True)
                    }
                )
                for row in found.sample
            ],
            dg.TableSchema([dg.TableColumn(name) for name in found.columns]),
        )
    return dg.AssetCheckEvaluation(
        asset_key=_asset(result.table),
        check_name=result.check.name,
        passed=result.passed,
        severity=(
            dg.AssetCheckSeverity.ERROR
            if result.severity == "error"
            else dg.AssetCheckSeverity.WARN
        ),
        description=found.text,
        metadata=metadata,
    )
