"""What was imported last: when, how much it changed, how long it took."""

from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg

from kbo_pipeline.core.errors import ExtractError
from kbo_pipeline.core.extracts import ExtractKey, ExtractType
from kbo_pipeline.operate.runs.estimate import WORK_STAGES, Seconds, usual_seconds
from kbo_pipeline.operate.runs.progress import PUBLISHED

_SECONDS_OF = "seconds/"
_PUBLICATIONS = 40
"""That are looked at; an extract may be published again after a repair."""

_VERIFIED = dg.AssetKey("full_verification")


@dataclass(frozen=True, slots=True)
class PastImport:
    """An extract that was published.

    Attributes:
        key: the extract.
        published_at: seconds of the epoch.
        run_id: the run that published it; empty when it was recorded without one.
        rows_changed: row versions that it opened and closed; None when nobody has counted.
        stages: how long each stage took.
        drift: rows in which it differs from the Full of its number; None when nobody has compared.
    """

    key: ExtractKey
    published_at: float
    run_id: str
    rows_changed: int | None
    stages: Seconds
    drift: int | None

    @property
    def seconds(self) -> float | None:
        """How long it took in all; None when that was not noted."""
        return sum(self.stages.values()) if self.stages else None


def past_imports(instance: dg.DagsterInstance, most: int = 30) -> list[PastImport]:
    """The extracts that were published last, the newest first."""
    drifts = _drifts(instance)
    found: dict[ExtractKey, PastImport] = {}
    for record in instance.fetch_materializations(PUBLISHED, limit=_PUBLICATIONS).records:
        event = record.asset_materialization
        try:
            key = ExtractKey.parse(record.partition_key or "")
        except ExtractError:
            continue
        if event is None or key in found:
            continue
        values = {name: entry.value for name, entry in event.metadata.items()}
        found[key] = PastImport(
            key,
            record.timestamp,
            record.run_id,
            _whole(values.get("rows_changed")),
            _stages(values),
            drifts.get(str(key)),
        )
    return sorted(found.values(), key=lambda past: past.key, reverse=True)[:most]


def usual_seconds_of(instance: dg.DagsterInstance, kind: ExtractType) -> Seconds:
    """How long each stage of an extract of this type usually takes."""
    past = [past.stages for past in past_imports(instance) if past.key.type == kind]
    return usual_seconds(kind, [stages for stages in past if stages])


def stages_metadata(spent: Seconds) -> dict[str, float]:
    """What a publication records of how long each stage took."""
    return {f"{_SECONDS_OF}{stage}": round(seconds, 3) for stage, seconds in spent.items()}


def _stages(values: Mapping[str, object]) -> Seconds:
    return {
        stage: float(seconds)
        for stage in WORK_STAGES
        if isinstance(seconds := values.get(f"{_SECONDS_OF}{stage}"), int | float)
    }


def _drifts(instance: dg.DagsterInstance) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for record in instance.fetch_materializations(_VERIFIED, limit=_PUBLICATIONS).records:
        event = record.asset_materialization
        if event is not None and record.partition_key and "drift" in event.metadata:
            found.setdefault(record.partition_key, _whole(event.metadata["drift"].value))
    return found


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
