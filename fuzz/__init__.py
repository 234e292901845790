"""Hostile files: seeds, mutations with correct checksums, a monitored target; for atheris and the tests."""
