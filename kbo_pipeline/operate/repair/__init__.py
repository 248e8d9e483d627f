"""What is wrong, and setting it right: doctor, alerts, repair, rebuild.

Dead runs are ended and retried in `runs.recovery`, which `repair` calls.
"""
