"""Faults on purpose, many of them, with seeds that replay: `make chaos`."""
