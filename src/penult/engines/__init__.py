"""How a forward pass is run; one file per engine."""
