"""What a model of the run can do: held-out loss, exact match, unseen datasets, drift from θ0."""
