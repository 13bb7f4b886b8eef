"""The merge in the trackers that show the branches."""
