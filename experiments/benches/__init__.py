"""Benchmarks: each gives lines of figures; `experiments.benchmark` shows and stores them."""
