"""An extract's ZIP: from the portal or the inbox into the downloads directory, whole and sound.

Of what is in it only `meta.csv` is read here; the tables are read in `stage`.
"""
