"""Runs side by side: one file a question, each from evidence to a section of the page."""
