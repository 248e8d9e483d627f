"""An extract is completed, checked and shown to readers; rolled back, verified, copied.

Applying its batches comes before, in `apply`.
"""
