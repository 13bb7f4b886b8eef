"""The fault campaign: whatever goes wrong in a run, nothing is lost. `make faults` runs all of it."""
