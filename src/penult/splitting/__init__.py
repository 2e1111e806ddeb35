"""Where to cut: record a forward pass, walk back to the head, list the taps."""
