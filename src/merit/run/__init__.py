"""The run directory: every path, stage records, fingerprints, lock, events."""
