"""The commands of `kbo`, a module a subject: parse, one call, print.

What they do is in the folders below; `cli.py` puts them together.
"""
