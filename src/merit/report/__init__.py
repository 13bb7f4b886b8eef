"""The report: reads the run's JSON, draws one HTML file."""
