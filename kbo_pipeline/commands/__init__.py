"""Commands of `kbo` in modules of their own, each registered in `cli.py` by one line."""
