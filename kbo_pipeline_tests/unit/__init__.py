"""Tests of pure functions and of the repository itself: no database, no server, no Dagster."""
