"""From a classifier to an embedder: items opened, run in batches, and what it gives."""
