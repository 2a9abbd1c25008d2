"""The loop: one update, many times, compiled."""
