"""Faulty input, and what is said of it: `python -m kbo_pipeline_tests.tools.bad_input`."""
