"""What everything rests on: errors, files, records, locks, the machine, words, progress, extensions."""
