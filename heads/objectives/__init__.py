"""Objectives: from cosines to a loss over the selected classes."""
