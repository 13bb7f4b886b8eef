"""Can the numbers be trusted: this model on this machine, each way of computing against a plainer one."""
