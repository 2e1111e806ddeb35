"""Classes from examples: scores, probabilities, and what is none of them. Numpy in; no models."""
