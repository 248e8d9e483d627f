"""Tests of the core on real ZIPs, DuckDB files, DuckLakes and HTTP servers, without Dagster."""
