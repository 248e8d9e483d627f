"""Made-up extracts with the shape of the real ones, and a stand-in portal that serves them.

Nothing in them is anybody's data. What misbehaves on purpose belongs to the tests.
"""

from kbo_pipeline.sample.extracts import Sample, write_sample

__all__ = ["Sample", "write_sample"]
