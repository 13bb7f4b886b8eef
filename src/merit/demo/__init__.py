"""What is embedded for demonstrations."""
