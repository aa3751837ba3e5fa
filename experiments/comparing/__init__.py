"""Comparison of finished runs: reading them, grouping them, their differences, and the page."""
