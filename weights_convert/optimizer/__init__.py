"""The state of an optimiser, carried from one framework to another with the weights."""
