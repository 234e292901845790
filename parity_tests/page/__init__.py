"""A report as an HTML page with drawings."""
