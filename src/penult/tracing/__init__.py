"""Record a forward pass, find the head, cut there and prove the cut; for torch and for graphs."""
