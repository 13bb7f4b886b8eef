"""Branches for other trainers: `merit handover` writes them a folder, `merit adopt` takes the result back."""
