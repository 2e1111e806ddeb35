"""Items that share a forward pass: how they are gathered, padded, masked and pooled."""
