"""Vectors and labels in, numbers and small objects out. Knows no model and no collection."""
