"""Conversion of image sets and lists of pairs between formats."""
