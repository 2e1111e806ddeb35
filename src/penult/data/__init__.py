"""From what the user names to decoded values: items, regions, windows, media."""
