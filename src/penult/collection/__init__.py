"""A collection on the disk: rows written, read, searched, indexed and looked after."""
