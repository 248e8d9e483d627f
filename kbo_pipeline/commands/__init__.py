"""Commands of `kbo`, a module a subject; `cli.py` puts them together."""
