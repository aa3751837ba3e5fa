"""Shared foundations of the heads: options, schedules, random draws, memory, timing, matrix products, costs."""
