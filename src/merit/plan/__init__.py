"""What a run will cost, before anything is loaded: tokens, FLOPs, hours, memory, disk, bytes between machines."""
