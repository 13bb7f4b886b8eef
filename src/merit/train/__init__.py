"""Branches: θ0 fine-tuned on one group, as a job that can run anywhere."""
