"""One engine a file, which defines `ENGINE`; the file's name is the engine's."""
