"""The built-in splitters, one a file. The first line of a file's docstring is what the configuration says of it."""
