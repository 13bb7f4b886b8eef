"""A pilot before the whole training: do the branches' merges hold together? Go or no-go."""
