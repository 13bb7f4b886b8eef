"""Can the numbers be trusted? One model on this machine, each way of computing against a plainer one."""
