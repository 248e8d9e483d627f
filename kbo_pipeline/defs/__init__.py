"""The Dagster shell around the core; the only place that imports Dagster."""
