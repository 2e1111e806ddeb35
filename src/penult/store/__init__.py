"""A collection: what is kept on the disk, how it is written, read, searched and looked after."""
