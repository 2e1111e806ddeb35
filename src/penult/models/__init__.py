"""Open a classifier: options, checkpoints, preprocessing, one loader for each origin."""
