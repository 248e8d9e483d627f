"""Dagster's definitions: assets, checks, sensors, jobs, with Dagster's public API alone.

What they do is in the folders below; here is only what Dagster has to be told.
"""
