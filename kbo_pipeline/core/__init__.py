"""What KBO publishes and where it is kept: tables, keys and order as data, settings, errors, files.

Nothing here knows an extract's ZIP, Dagster, or what is done with a register.
"""
