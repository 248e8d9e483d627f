"""Runs in Dagster's storage: progress, claims, cancelling, runs that end early.

Nothing here starts a process or repairs a register.
"""
