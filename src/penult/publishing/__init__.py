"""Embedders, class spaces and collections on the Hugging Face hub: prepared, pushed, fetched."""
