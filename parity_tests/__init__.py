"""The proof that the three implementations give the same numbers, and its tests."""
