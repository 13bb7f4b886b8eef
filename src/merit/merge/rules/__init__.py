"""The built-in merge rules, one a file. The first line of a file's docstring is what the configuration says of it."""
