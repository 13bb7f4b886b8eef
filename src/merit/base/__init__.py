"""What everything rests on: errors, files, records, locks, progress."""
