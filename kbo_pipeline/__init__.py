"""Belgium's company register (KBO Open Data), complete, current and queryable on one machine."""
