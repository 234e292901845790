"""The judge: networks in NumPy, tolerances, weights and images for tests."""
