"""The built-in checks of `merit diagnose`, one a file."""
