"""θ0 and checkpoints: loading, headers, sharded writing."""
