"""Where to read a classifier for another task, decided from labelled vectors. Knows no models."""
