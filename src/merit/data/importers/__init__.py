"""One importer a file, which defines `IMPORTER`; the file's name is the trainer's."""
