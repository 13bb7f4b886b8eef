"""One file a stage: what it depends on, and how it turns files into files. The order is pipeline.py's."""
