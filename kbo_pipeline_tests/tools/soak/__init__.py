"""`make soak`: workers and readers on one DuckLake for a while, some of which die."""
