"""The loops that the benchmark times."""
