"""What the project's speed and memory are measured with; nothing of it runs in the tests."""
