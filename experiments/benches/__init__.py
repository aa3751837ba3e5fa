"""Benchmarks: each returns lines of figures, which `experiments.benchmark` prints and stores."""
