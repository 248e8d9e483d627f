"""From a ZIP to a typed DuckDB file of one extract, cut into batches.

The register is neither read nor written here.
"""
