"""Identifies a file: the family of its tensor names, and the network."""
