"""Made-up extracts with the shape of the real ones. Nothing in them is anybody's data."""

from kbo_pipeline.sample.extracts import Sample, write_sample

__all__ = ["Sample", "write_sample"]
