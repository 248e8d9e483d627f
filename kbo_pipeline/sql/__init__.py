"""SQL of the folders that are still to come."""
