"""The commands of `kbo`, a module a subject: parse, one call, print; and what they share.

What they do is in the folders below; `cli.py` puts them together. `demo` is that of `make demo`.
"""
