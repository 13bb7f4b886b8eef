"""Partitions of a mixture, and the splitters that make them."""
