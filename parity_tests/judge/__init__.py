"""The judge: a network in NumPy, what an error may be, weights and images to try."""
