"""The class pool of FFC: a batched LRU cache from classes to slots."""
