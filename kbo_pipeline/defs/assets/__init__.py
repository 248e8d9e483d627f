"""The assets, a module a stage of the import. Each calls one function of the folders below."""
