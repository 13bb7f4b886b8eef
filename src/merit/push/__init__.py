"""A finished model to the Hub: what goes, whether it may, and the upload."""
