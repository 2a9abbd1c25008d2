"""Runs, and what they show."""
