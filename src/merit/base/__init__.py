"""What everything rests on: errors, files, records, locks, the machine, places elsewhere, words, progress."""
