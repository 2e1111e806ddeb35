"""Items in, batches of rows out. Knows no store."""
