"""The alerts that stand, kept in Dagster's storage by the sensor that looks for them."""

import json
from collections.abc import Sequence
from typing import Any

import dagster as dg

_STORED_AS = "kbo/standing_alerts"


def store_alerts(instance: dg.DagsterInstance, alerts: Sequence[dict[str, Any]]) -> None:
    """Notes which alerts stand; nothing is written while these are the same.

    Args:
        instance: where.
        alerts: as the webhook gets them.
    """
    text = json.dumps(alerts)
    if instance.run_storage.get_cursor_values({_STORED_AS}).get(_STORED_AS, "[]") != text:
        instance.run_storage.set_cursor_values({_STORED_AS: text})


def read_alerts(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """The alerts that stood when the sensor looked last."""
    stored = instance.run_storage.get_cursor_values({_STORED_AS}).get(_STORED_AS, "[]")
    return list(json.loads(stored))
