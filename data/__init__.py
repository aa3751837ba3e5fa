"""Data: records, the batch streams over them, and the sets that need no download."""
