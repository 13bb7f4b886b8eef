"""Is the init merge-ready, did the branches stay in one basin, what did the merge gain, did the theory predict it."""
