"""One data format a file, which defines `FORMAT`; the file's name is the format's."""
