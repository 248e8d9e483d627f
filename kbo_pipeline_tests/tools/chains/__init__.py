"""Random chains of extracts, rollbacks, repairs and rebuilds, against models in plain Python."""
