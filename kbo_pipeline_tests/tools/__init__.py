"""Programs that are no tests: benches, chaos, fuzzing, and what writes pages of the docs."""
