"""The page `/kbo`: how far everything is, what is wrong, and the buttons for both.

It reads Dagster's storage and small files, and opens no register. Nothing here starts a process.
"""
