"""A run on disk, from its first to its last byte."""
