"""Hostile files: seeds, mutations that keep checksums right, a watched target; for atheris and the tests."""
