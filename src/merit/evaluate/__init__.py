"""What each model of a run can do: held-out loss, exact match, unseen datasets, drift from θ0."""
