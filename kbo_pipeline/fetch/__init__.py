"""An extract's ZIP: from the portal or the inbox into the downloads directory, whole and sound.

What its CSV files hold is read in `stage`.
"""
