"""Which datasets conflict: similarity of their gradients, its reliability, its principal axes."""
