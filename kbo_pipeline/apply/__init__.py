"""Batches into the register and its ledger, each in one transaction.

What readers see does not change here; `publish` does that.
"""
