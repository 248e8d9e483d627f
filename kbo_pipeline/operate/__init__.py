"""Keeping it alive: processes, runs and repairs. The only folder that knows Dagster's insides.

Assets, jobs and sensors are declared in `defs`, with Dagster's public API alone.
"""
