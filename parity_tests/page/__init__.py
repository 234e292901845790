"""A report as an HTML page, with its drawings."""
