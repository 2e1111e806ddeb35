"""How batches are made and run; one file for each engine."""
