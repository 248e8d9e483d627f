"""The processes of `kbo start` and the PostgreSQL server: started, watched, ended.

Also what Dagster's web server shows besides its own pages, and Dagster's storage. Which runs there
are is in `runs`; what is set right after a crash in `repair`.
"""
