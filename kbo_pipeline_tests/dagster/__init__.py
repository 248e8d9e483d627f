"""Tests of assets, sensors, checks and commands: real Dagster instances, real PostgreSQL."""
