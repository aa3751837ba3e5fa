"""The class pool of FFC."""
