"""Tests of whole stacks: `kbo start`, what dies in it, and a year of it."""
