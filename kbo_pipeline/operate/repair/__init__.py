"""What is wrong, and setting it right: doctor, alerts, repair, rebuild.

What is merely going on is in `runs`.
"""
