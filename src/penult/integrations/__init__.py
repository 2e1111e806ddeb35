"""Penult inside of other tools; one module and one extra each."""
