"""The power of a comparison: the smallest changes that it notices."""
