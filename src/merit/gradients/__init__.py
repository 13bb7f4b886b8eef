"""One mean gradient a dataset at θ0, kept as a sketch."""
