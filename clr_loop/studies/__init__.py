"""Runs, and what they show: range tests, comparisons, their reports and pictures."""
