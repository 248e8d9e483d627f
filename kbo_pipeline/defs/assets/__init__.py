"""The assets, and what Dagster is told of them. The work is done in the folders below."""
