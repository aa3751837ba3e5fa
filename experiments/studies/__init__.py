"""Studies that tune every head alike: their trials and final runs, their results as CSV files, and the drawn page."""
