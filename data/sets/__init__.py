"""Data sets: built-in ones and the user's own."""
