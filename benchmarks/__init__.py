"""Measurements of the project's speed and memory; the tests do not run them."""
