"""Tests of kbo_pipeline: real DuckDB, real PostgreSQL, real ZIPs, real processes."""
