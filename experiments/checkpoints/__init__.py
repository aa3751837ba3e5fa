"""What a checkpoint holds, how it is written and read, and where it lies."""
