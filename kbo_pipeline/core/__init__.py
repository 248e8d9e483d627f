"""What KBO publishes and where it is kept: tables, keys and order as data, settings, errors, files.

No other folder is imported here. What is inside a ZIP is read in `fetch` and `stage`.
"""
