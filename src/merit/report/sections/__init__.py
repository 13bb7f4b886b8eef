"""The chapters of the report, one file each, in the order in which the story is told by `build.py`."""
