"""How a job is started and watched. No ML here: a job is a command line and a marker file."""
