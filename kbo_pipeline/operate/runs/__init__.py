"""Runs in Dagster's storage: progress, claims, cancelling, runs that end early.

Also what claims an extract for one process at a time. Nothing here repairs a register.
"""
