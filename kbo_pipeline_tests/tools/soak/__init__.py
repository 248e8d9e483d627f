"""`make soak`: a writer and readers on one DuckLake for a while, in which the writer dies."""
