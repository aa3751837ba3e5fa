"""Which classes take part in a step."""
