"""Data: records, batch streams, formats, conversion, and sets that need no download."""
