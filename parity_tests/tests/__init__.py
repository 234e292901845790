"""Every test, and what only tests need; never in the wheel."""
