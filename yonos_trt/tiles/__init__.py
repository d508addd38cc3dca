"""Tiles: where they lie, what they see, how they are put together, in NumPy and in compiled code."""
