"""The processes of `kbo start` and the PostgreSQL server: started, watched, ended.

Which runs they have is in `runs`; what is set right after a crash in `repair`.
"""
