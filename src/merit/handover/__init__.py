"""Branches for other people's trainers: one module a trainer, each writes that trainer's own configuration."""
