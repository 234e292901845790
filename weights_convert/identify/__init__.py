"""Identifying a file: whose naming its tensors have, and which network they are."""
