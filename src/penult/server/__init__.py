"""The server: labels and vectors of one pass over HTTP, the same under any load."""
