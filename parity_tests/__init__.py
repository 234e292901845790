"""Proves that the three implementations compute the same numbers; also holds the tests."""
