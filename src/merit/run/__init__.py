"""The run directory: every path, what a run may touch, its lock, its events."""
