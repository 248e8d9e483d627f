"""Runs in Dagster's storage: progress, claims, cancelling, runs whose process died.

Nothing here starts a process or repairs a register.
"""
