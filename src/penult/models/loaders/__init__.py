"""One loader for each origin of classifiers."""
