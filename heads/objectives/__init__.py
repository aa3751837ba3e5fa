"""Objectives: the exact margin softmax, its gradients and exact top-k, streamed over class rows."""
