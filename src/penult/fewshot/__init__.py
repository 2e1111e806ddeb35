"""Classes from examples: scores, probabilities, and the level of unknown."""
