"""The asset checks: declared for the UI, evaluated when publishing, and by hand at any time."""

from collections.abc import Iterator

import dagster as dg
from dagster_duckdb import DuckDBResource

from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.tables import Table
from kbo_pipeline.defs.metadata import shown_table
from kbo_pipeline.defs.step import step_guard
from kbo_pipeline.operate.runs.progress import PUBLISHED
from kbo_pipeline.publish.checks import CHECKS
from kbo_pipeline.publish.publish import CheckResult, check_published


def _asset(table: Table | None) -> dg.AssetKey:
    return PUBLISHED if table is None else dg.AssetKey(table.name)


_EFFECTS = {"error": "Stops publication.", "warning": "A warning: it stops nothing."}
_SEVERITIES = {"error": dg.AssetCheckSeverity.ERROR, "warning": dg.AssetCheckSeverity.WARN}
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
            description=f"{check.description}\n\n{_EFFECTS[check.severity]}",
        )
        for check in CHECKS
        for table in check.tables
    ],
    can_subset=True,
)
def check_published_register(
    context: dg.AssetCheckExecutionContext, duckdb: DuckDBResource
) -> Iterator[dg.AssetCheckResult]:
    """Looks at all published rows; publishing looks at each extract by itself."""
    if context.run.asset_selection:  # materializing in the UI asks for checks: publishing has them
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
    sample = {"sample": shown_table(found.columns, found.sample)} if found.sample else {}
    return dg.AssetCheckEvaluation(
        asset_key=_asset(result.table),
        check_name=result.check.name,
        passed=result.passed,
        severity=_SEVERITIES[result.severity],
        description=found.text,
        metadata={
            "extract": dg.MetadataValue.text(str(key)),
            "count": dg.MetadataValue.int(found.count),
            "looked_at": dg.MetadataValue.text(found.looked_at),
            **sample,
        },
    )
