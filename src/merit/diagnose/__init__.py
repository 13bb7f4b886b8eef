"""Is θ0 merge-ready, did the branches stay in one basin, what did the merge gain, and did the theory predict it?"""
