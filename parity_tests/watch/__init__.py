"""Watching a live model run, whichever framework it is of."""
