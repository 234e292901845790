"""All tests and their helpers; not part of the wheel."""
