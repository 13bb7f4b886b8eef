"""One figure a function: from records to plotly's JSON, with the same numbers as a table."""
