"""Events of a batch, reported together, by Dagster's insides."""

import uuid
from collections.abc import Iterator, Sequence

import dagster as dg
from dagster._core.events import DagsterEventBatchMetadata


def reported(
    context: dg.AssetExecutionContext, found: Sequence[dg.AssetMaterialization]
) -> Iterator[dg.DagsterEvent]:
    """Reports the events of a batch together: our storage has all of them then, or none."""
    step, together = context.get_step_execution_context(), str(uuid.uuid4())
    for place, materialization in enumerate(found, start=1):
        is_last = place == len(found)
        yield dg.DagsterEvent.asset_materialization(
            step, materialization, DagsterEventBatchMetadata(together, is_last)
        )
