"""The explorer: one page on a collection, to see it, hear it and teach it classes."""
