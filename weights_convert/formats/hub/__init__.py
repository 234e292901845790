"""Folders as on the Hugging Face Hub: weights in one file or in shards, and config.json."""
