"""From a classifier to an embedder: items in, vectors and logits out."""
