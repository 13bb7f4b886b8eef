"""What everything rests on: errors, files, records, locks, the machine, URLs, words, progress, extensions."""
