"""What the heads share below everything else: random draws, memory, timing, matrix products, options."""
