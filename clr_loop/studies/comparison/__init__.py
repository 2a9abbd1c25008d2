"""A comparison: its arms are run, measured and tested against each other."""
