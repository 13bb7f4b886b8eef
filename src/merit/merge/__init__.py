"""One average of many checkpoints, streamed."""
